"""Hostile files cost one worker, give one clear error, and harm nobody else."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from orchestrator import errors
from orchestrator.documents.findings import PdfInfo
from orchestrator.documents.parser_worker import LossCause, WorkerPolicy, WorkerPool
from orchestrator.documents.sandbox import ParserSandbox, SandboxLimits
from orchestrator.domain import FlawedPage
from tests import pdfs

NASTY = Path(__file__).parents[3] / "shared" / "data" / "nasty"
MIB = 1024 * 1024
LOST = "was left out"


@pytest.fixture
def saved(tmp_path):
    """Writes bytes to a file of the name and gives its path."""

    def save(data, name="file.pdf"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return save


@asynccontextmanager
async def running(workers=1, **limits):
    """A started sandbox and the causes of its losses; afterwards none of its processes lives."""
    losses = []
    sandbox = ParserSandbox(limits=SandboxLimits(**limits), workers=workers, on_loss=losses.append)
    await sandbox.start()
    seen = set(sandbox.pids)
    try:
        yield sandbox, losses
        seen |= set(sandbox.pids)
    finally:
        await sandbox.aclose()
    assert not any(psutil.pid_exists(pid) for pid in seen)


async def read(sandbox, path, total=None):
    """All pages, after a look unless their number is given."""
    total = total or (await sandbox.inspect(path)).pages
    return [page async for page in sandbox.pages(path, total=total)]


async def test_a_good_document_is_read_whole_and_in_order(saved):
    """Pages come in order over many windows, from the process that stays the same."""
    path = saved(pdfs.text_pdf([f"This is sheet {n}." for n in range(1, 41)]))
    async with running() as (sandbox, losses):
        before = sandbox.pids
        assert await sandbox.inspect(path) == PdfInfo(pages=40)
        pages = await read(sandbox, path)
        assert [(p.number, p.text) for p in pages] == [
            (n, f"This is sheet {n}.") for n in range(1, 41)
        ]
        assert sandbox.pids == before
        assert losses == []


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", errors.EmptyFile),
        (b"no pdf at all", errors.NotAPdf),
        (pdfs.encrypted("sesame"), errors.EncryptedDocument),
        (pdfs.no_pages(), errors.NoPages),
        (pdfs.truncated(), errors.DamagedDocument),
        (pdfs.many_pages(51), errors.TooManyPages),
    ],
)
async def test_errors_cross_the_pipe_and_cost_no_worker(saved, data, error):
    """What the reader says arrives as the same error, and the worker goes on."""
    async with running(max_pages=50) as (sandbox, losses):
        before = sandbox.pids
        with pytest.raises(error):
            await sandbox.inspect(saved(data))
        with pytest.raises(error):
            await read(sandbox, saved(data), total=1)
        assert sandbox.pids == before
        assert losses == []


async def test_a_file_that_is_gone_is_the_stores_fault(tmp_path):
    """A missing file is worth another try, and no fault of the document."""
    async with running() as (sandbox, _):
        with pytest.raises(errors.StoreUnavailable):
            await sandbox.inspect(tmp_path / "gone.pdf")
        with pytest.raises(errors.StoreUnavailable):
            await read(sandbox, tmp_path / "gone.pdf", total=3)


async def test_an_endless_page_costs_one_worker_and_only_itself(saved):
    """CPU time ends its worker, twice; the page is left out, and the next file is read."""
    endless, good = saved(pdfs.operand_bomb(1_900_000)), saved(pdfs.handbook(), "good.pdf")
    async with running(cpu_s_per_page=1) as (sandbox, losses):
        before = sandbox.pids
        began_s = time.monotonic()
        (page,) = await read(sandbox, endless)
        assert isinstance(page, FlawedPage)
        assert LOST in page.reason
        assert losses == [LossCause.CPU, LossCause.CPU]
        assert time.monotonic() - began_s < 20
        assert len(await read(sandbox, good)) == 7
        assert len(set(before) & set(sandbox.pids)) == 1


async def test_a_memory_bomb_costs_its_worker_and_only_itself(saved):
    """A page over the memory limit is tried twice, left out, and the next file is read."""
    bomb, good = saved(pdfs.operand_bomb(800_000)), saved(pdfs.handbook(), "good.pdf")
    async with running(memory_bytes=48 * MIB) as (sandbox, losses):
        (page,) = await read(sandbox, bomb)
        assert isinstance(page, FlawedPage)
        assert "48 MiB" in page.reason
        assert losses == [LossCause.MEMORY, LossCause.MEMORY]
        assert len(await read(sandbox, good)) == 7


async def test_the_time_of_a_document_is_bounded(saved):
    """A document of slow pages fails when its time is up."""
    path = saved(pdfs.operand_bomb(1_900_000))
    async with running(wall_s_per_document=0.7) as (sandbox, losses):
        began_s = time.monotonic()
        with pytest.raises(errors.ParserTimeout, match=r"0\.7 s"):
            await read(sandbox, path)
        assert time.monotonic() - began_s < 5
        assert losses == [LossCause.STALLED]


async def test_a_look_that_takes_too_long_is_refused(saved):
    """Opening a file is bounded while its upload waits, and the next look works."""
    slow, good = saved(pdfs.many_pages(4000)), saved(pdfs.handbook(), "good.pdf")
    async with running(wall_s_inspect=0.02) as (sandbox, losses):
        with pytest.raises(errors.ParserTimeout):
            await sandbox.inspect(slow)
        assert losses == [LossCause.STALLED]
    async with running() as (sandbox, _):
        assert (await sandbox.inspect(good)).pages == 7


async def test_a_worker_killed_from_outside_costs_nothing(saved):
    """A worker that dies for no fault of the file is replaced, and the file is read whole."""
    path = saved(pdfs.handbook())
    async with running() as (sandbox, losses):
        for pid in sandbox.pids:
            os.kill(pid, 9)
        assert (await sandbox.inspect(path)).pages == 7
        pages = await read(sandbox, path)
        assert len(pages) == 7
        assert not any(isinstance(page, FlawedPage) for page in pages)
        assert set(losses) <= {LossCause.MEMORY}


async def test_a_look_never_waits_for_a_long_read(saved):
    """While every reader is busy, an upload's quick look is answered at once."""
    slow, good = saved(pdfs.operand_bomb(1_900_000)), saved(pdfs.handbook(), "good.pdf")
    async with running() as (sandbox, _):
        busy = asyncio.create_task(read(sandbox, slow, total=1))
        await wait_until(is_read(sandbox))
        began_s = time.monotonic()
        assert (await sandbox.inspect(good)).pages == 7
        assert time.monotonic() - began_s < 1
        assert not busy.done()
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)


async def test_cancelling_the_reader_kills_its_worker_only(saved):
    """A caller that goes away leaves no process at work, and the next is served."""
    slow, good = saved(pdfs.operand_bomb(1_900_000)), saved(pdfs.handbook(), "good.pdf")
    async with running() as (sandbox, _):
        inspector, reader = sandbox.pids
        busy = asyncio.create_task(read(sandbox, slow, total=1))
        await wait_until(is_read(sandbox))
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)
        await wait_until(lambda: not psutil.pid_exists(reader))
        assert len(await read(sandbox, good)) == 7
        assert inspector in sandbox.pids


async def test_a_generator_that_is_closed_early_leaves_nothing_behind(saved):
    """Taking one page of many and closing the generator frees the worker for the next."""
    path = saved(pdfs.many_pages(200))
    async with running() as (sandbox, _):
        async with aclosing(sandbox.pages(path, total=200)) as pages:
            assert (await anext(pages)).number == 1
        assert len(await read(sandbox, path)) == 200
        assert not [t for t in asyncio.all_tasks() if t.get_name() == "parse-window"]


async def test_two_documents_share_one_worker_fairly(saved):
    """A short document does not wait for the end of a long one."""
    long, short = saved(pdfs.many_pages(2000)), saved(pdfs.handbook(), "short.pdf")
    async with running() as (sandbox, _):
        busy = asyncio.create_task(read(sandbox, long, total=2000))
        assert len(await read(sandbox, short)) == 7
        assert not busy.done()
        assert [p.number for p in await busy] == list(range(1, 2001))


async def test_closing_ends_what_is_being_read(saved):
    """Whoever still reads or waits gets NotReady; nobody waits for ever."""
    slow = saved(pdfs.operand_bomb(1_900_000))
    async with running() as (sandbox, _):
        readers = [asyncio.create_task(read(sandbox, slow, total=1)) for _ in range(3)]
        await wait_until(is_read(sandbox))
        await sandbox.aclose()
        ends = await asyncio.gather(*readers, return_exceptions=True)
        assert [type(end) for end in ends] == [errors.NotReady] * 3
        with pytest.raises(errors.NotReady):
            await sandbox.inspect(slow)


async def test_a_worker_is_replaced_after_enough_documents(saved):
    """A worker that has served its documents gives its memory back by leaving."""
    policy = WorkerPolicy(memory_bytes=256 * MIB, niceness=0, max_reply_bytes=MIB, max_documents=2)
    pool = WorkerPool(size=1, policy=policy)
    served = []
    await pool.start()
    try:
        for n in range(6):
            path = saved(pdfs.text_pdf(["x"]), f"{n}.pdf")
            async with pool.lease() as worker:
                served.append(worker.pid)
                worker.send({"op": "inspect", "path": str(path), "max_pages": 9, "cpu_s": 5})
                assert "info" in await worker.reply(within_s=20)
                assert "done" in await worker.reply(within_s=20)
    finally:
        await pool.aclose()
    assert sorted(Counter(served).values()) == [3, 3]


def test_the_process_is_confined(tmp_path):
    """It opens no socket, starts no program, writes no file and takes no more memory."""
    code = (
        "import os, socket, subprocess, sys\n"
        "from orchestrator.documents.confinement import confine\n"
        "print(confine(memory_bytes=64 << 20, niceness=0))\n"
        "for call in (socket.socket, lambda: subprocess.run(['true']),\n"
        "             lambda: open(sys.argv[1], 'wb', buffering=0).write(b'x'),\n"
        "             lambda: bytearray(100 << 20)):\n"
        "    try:\n"
        "        call()\n"
        "        print('allowed')\n"
        "    except (OSError, MemoryError) as exc:\n"
        "        print(type(exc).__name__)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "written")],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    in_force, *outcomes = run.stdout.splitlines()
    if "network" not in in_force:
        pytest.skip(f"this platform confines only {in_force}")
    assert outcomes == ["PermissionError", "PermissionError", "OSError", "MemoryError"]


@pytest.mark.shared_data
@pytest.mark.timeout(120)
async def test_every_nasty_file_is_read_or_refused(saved):
    """Real odd files give pages or a document's error in time, and good ones are read after."""
    outcomes, wrong, slowest = Counter(), [], (0.0, "")
    good = saved(pdfs.handbook())
    async with running() as (sandbox, losses):
        for line in (NASTY / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            began_s = time.monotonic()
            outcome = await outcome_of(sandbox, NASTY / entry["file"])
            slowest = max(slowest, (time.monotonic() - began_s, entry["file"]))
            outcomes[entry["expected"], outcome] += 1
            if not as_expected(entry, outcome):
                wrong.append((entry["file"], entry["expected"], outcome))
        assert len(await read(sandbox, good)) == 7
    for (expected, outcome), count in sorted(outcomes.items()):
        print(f"{expected:18} {outcome:20} {count:3}")
    print(f"slowest: {slowest[1]} {slowest[0]:.2f} s; workers lost: {losses}")
    assert slowest[0] < 60
    assert wrong == []


def as_expected(entry, outcome):
    """Whether the outcome is one that the file may have."""
    allowed = {
        "text": {"text"} | ({"no text"} if "garbled" in entry["categories"] else set()),
        "little_text": {"text", "no text"},
        "no_text": {"no text"},
        "password": {"encrypted_document"},
        "reject": {error.code for error in errors.leaves(errors.DocumentError)},
    }
    return outcome in allowed.get(entry["expected"], {outcome})


async def outcome_of(sandbox, path):
    """What became of the file: an error's code, or whether it gave text."""
    try:
        pages = await read(sandbox, path)
    except errors.DocumentError as exc:
        return exc.code
    return "text" if any(page.text for page in pages) else "no text"


async def wait_until(condition, within_s=30):
    """Return when the condition holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def is_read(sandbox):
    """
    Condition: a worker has computed for half a second from now on.

    From now on: a slow machine may have spent more than that on the workers' imports alone.
    """
    before_s = {pid: cpu_s(pid) for pid in sandbox.pids}
    return lambda: any(cpu_s(pid) > used_s + 0.5 for pid, used_s in before_s.items())


def cpu_s(pid):
    """CPU seconds that the process has used; 0 when it is gone."""
    try:
        used = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return used.user + used.system
