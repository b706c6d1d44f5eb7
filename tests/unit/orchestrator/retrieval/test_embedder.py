"""The parent's side of the embedder: lanes, limits, and a child that may die at any time."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from orchestrator import concurrency
from orchestrator.errors import EmbedderUnavailable, QueueFull
from orchestrator.retrieval import embedder_child
from orchestrator.retrieval.embedder import Embedder

# A child without a model: the vector of a text is its length. Texts may tell it what to do.
_CHILD = """
import json, os, signal, struct, sys, time
folder = sys.argv[1]
if os.path.exists(folder + "/no start"):
    sys.exit(3)
out, into = sys.stdout.buffer, sys.stdin.buffer

def send(header, body=b""):
    data = json.dumps(header).encode()
    out.write(struct.pack("<I", len(data)) + data + body)
    out.flush()

send({"dimension": 1, "max_tokens": 8, "dtype": "float32"})
while prefix := into.read(4):
    texts = json.loads(into.read(struct.unpack("<I", prefix)[0]))["texts"]
    with open(folder + "/log", "a") as log:
        log.write("|".join(texts) + "\\n")
    for text in texts:
        if text == "die" or (text == "die once" and not os.path.exists(folder + "/died")):
            open(folder + "/died", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "hang":
            time.sleep(60)
        if text == "compute":
            while True:
                pass
        if text == "wait":
            open(folder + "/waiting", "w").close()
            while not os.path.exists(folder + "/go"):
                time.sleep(0.005)
    if "bad" in texts:
        send({"error": "RuntimeError"})
    elif "garbage" in texts:
        send({"rows": 7, "dimension": 1})
    else:
        send({"rows": len(texts), "dimension": 1},
             b"".join(struct.pack("<f", len(text)) for text in texts))
"""


@pytest.fixture
def waits():
    """What each lane told of waiting."""
    return []


@pytest.fixture
def clock():
    """Time that stands still, unless a test moves it: seconds in a list of one."""
    return [0.0]


@pytest.fixture
async def embedder(tmp_path, waits, clock):
    program = tmp_path / "child.py"
    program.write_text(_CHILD)
    embedder = Embedder(
        model=Path("unused"),
        threads=1,
        max_batch=2,
        max_queued=3,
        start_timeout_s=10.0,
        request_timeout_s=5.0,
        look_s=0.02,
        command=[sys.executable, "-S", "-E", str(program), str(tmp_path)],
        on_wait=lambda lane, wait_s: waits.append((lane, wait_s)),
        clock=lambda: clock[0],
    )
    await embedder.start()
    yield embedder
    await embedder.aclose()


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def log(folder):
    return (folder / "log").read_text().splitlines()


async def test_the_child_says_what_it_is(embedder):
    """After the start its figures are known."""
    assert (embedder.dimension, embedder.max_tokens, embedder.dtype) == (1, 8, "float32")
    assert embedder.alive
    assert embedder.restarts == 0


async def test_rows_come_in_the_order_of_the_texts(embedder, tmp_path):
    """Texts of like length travel together, and nobody sees it in the answer."""
    texts = ["a", "four", "bb", "sevenxx", "ccc"]
    assert (await embedder.embed_passages(texts))[:, 0].tolist() == [1, 4, 2, 7, 3]
    assert log(tmp_path) == ["sevenxx|four", "ccc|bb", "a"]
    assert (await embedder.embed_passages([])).shape == (0, 1)
    assert (await embedder.embed_query("query")).tolist() == [5.0]


async def test_while_questions_come_passages_go_in_smaller_batches(embedder, tmp_path, clock):
    """So that a question waits for less; whole batches again once nobody has asked for a while."""
    await embedder.embed_query("q")
    await embedder.embed_passages(["p1", "p2"])
    clock[0] += 10.0
    await embedder.embed_passages(["p1", "p2"])
    assert log(tmp_path) == ["q", "p1", "p2", "p1|p2"]


async def test_a_question_overtakes_passages(embedder, tmp_path):
    """Whatever ingestion has waiting, a question is next."""
    first = asyncio.create_task(embedder.embed_passages(["wait", "x"]))
    await until((tmp_path / "waiting").exists)
    passages = asyncio.create_task(embedder.embed_passages(["p1", "p2", "p3"]))
    await asyncio.sleep(0)
    questions = [asyncio.create_task(embedder.embed_query(f"q{n}")) for n in range(2)]
    await asyncio.sleep(0)
    (tmp_path / "go").touch()
    await asyncio.gather(first, passages, *questions)
    assert log(tmp_path) == ["wait|x", "q0|q1", "p1|p2", "p3"]


async def test_each_lane_tells_how_long_it_made_wait(embedder, tmp_path, waits, clock):
    """In seconds, from the request until the child gets it; computing is not waiting."""
    first = asyncio.create_task(embedder.embed_passages(["wait"]))
    await until((tmp_path / "waiting").exists)
    passages = asyncio.create_task(embedder.embed_passages(["p1"]))
    await asyncio.sleep(0)
    clock[0] = 2.0
    question = asyncio.create_task(embedder.embed_query("q"))
    await asyncio.sleep(0)
    clock[0] = 3.0
    (tmp_path / "go").touch()
    await asyncio.gather(first, passages, question)
    assert waits == [("embed_passages", 0.0), ("embed_query", 1.0), ("embed_passages", 3.0)]


async def test_a_full_lane_refuses(embedder, tmp_path):
    """Lanes are bounded, and each on its own."""
    blocked = asyncio.create_task(embedder.embed_query("wait"))
    await until((tmp_path / "waiting").exists)
    waiting = [asyncio.create_task(embedder.embed_query("q")) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match=r"3 requests wait.*and 3 may"):
        await embedder.embed_query("one too many")
    passages = asyncio.create_task(embedder.embed_passages(["p"]))
    await asyncio.sleep(0)
    assert embedder.waiting == (3, 1)
    (tmp_path / "go").touch()
    await asyncio.gather(blocked, passages, *waiting)


async def test_a_cancelled_caller_leaves_nothing_behind(embedder, tmp_path):
    """Its place in the lane is free at once, and its answer goes nowhere."""
    in_flight = asyncio.create_task(embedder.embed_query("wait"))
    await until((tmp_path / "waiting").exists)
    queued = asyncio.create_task(embedder.embed_query("q"))
    await asyncio.sleep(0)
    queued.cancel()
    in_flight.cancel()
    await asyncio.gather(queued, in_flight, return_exceptions=True)
    assert embedder.waiting == (0, 0)
    (tmp_path / "go").touch()
    assert (await embedder.embed_query("next")).tolist() == [4.0]
    assert log(tmp_path) == ["wait", "next"]


async def test_a_question_lost_with_the_child_fails_and_the_next_is_answered(embedder):
    """The caller is told, the child comes back."""
    with pytest.raises(EmbedderUnavailable, match="ended with code -9"):
        await embedder.embed_query("die")
    assert (await embedder.embed_query("next")).tolist() == [4.0]
    assert embedder.restarts == 1
    assert embedder.alive


async def test_passages_lost_with_the_child_are_tried_once_more(embedder, tmp_path):
    """Ingestion does not notice one death, and is told of two in a row."""
    assert (await embedder.embed_passages(["die once", "y"]))[:, 0].tolist() == [8, 1]
    assert embedder.restarts == 1
    with pytest.raises(EmbedderUnavailable, match="lost"):
        await embedder.embed_passages(["die"])
    assert (await embedder.embed_query("next")).tolist() == [4.0]
    assert log(tmp_path) == ["die once|y", "die once|y", "die", "die", "next"]


async def test_others_go_on_waiting_while_the_child_is_replaced(embedder, tmp_path):
    """Only the question in flight pays for the death."""
    in_flight = asyncio.create_task(embedder.embed_query("wait"))
    await until((tmp_path / "waiting").exists)
    waiting = asyncio.create_task(embedder.embed_query("q"))
    await asyncio.sleep(0)
    os.kill(embedder._child.pid, signal.SIGKILL)
    with pytest.raises(EmbedderUnavailable):
        await in_flight
    assert (await waiting).tolist() == [1.0]


async def test_a_silent_child_is_replaced(embedder):
    """Silence is treated as death."""
    embedder._request_timeout_s = 0.05
    with pytest.raises(EmbedderUnavailable, match="did not answer in time"):
        await embedder.embed_query("hang")
    embedder._request_timeout_s = 5.0
    assert (await embedder.embed_query("next")).tolist() == [4.0]


@pytest.fixture
async def before(embedder, tmp_path):
    """Hands the child passages, and waits until it has them."""
    tasks = []

    async def before(*passages):
        if passages:
            tasks.append(asyncio.create_task(embedder.embed_passages(passages)))
            await until((tmp_path / "log").exists)

    yield before
    for task in tasks:
        task.cancel()


@pytest.mark.parametrize(("passages", "text"), [(["compute"], "q"), ([], "compute")])
async def test_a_child_at_work_is_slow_and_not_silent(embedder, before, passages, text):
    """A question that others keep waiting, or that takes long, ran out of time: nobody failed."""
    await before(*passages)
    with pytest.raises(TimeoutError):
        await embedder.embed_query(text, timeout_s=0.5)
    assert embedder.waiting == (0, 0)


@pytest.mark.parametrize(("passages", "text"), [(["hang"], "q"), ([], "hang")])
async def test_a_child_that_does_nothing_is_told_as_such(embedder, before, passages, text):
    """Neither computing nor answering for all of the time that a question has is a failure."""
    await before(*passages)
    with pytest.raises(EmbedderUnavailable, match=r"did nothing for 0\.1 s"):
        await embedder.embed_query(text, timeout_s=0.2)
    assert embedder.waiting == (0, 0)


async def test_a_machine_that_stood_still_blames_nobody(embedder):
    """Time that passed while nobody looked says nothing of the child: it may have had none of it."""
    question = asyncio.create_task(embedder.embed_query("hang", timeout_s=0.2))
    await asyncio.sleep(0.01)
    time.sleep(0.3)  # noqa: ASYNC251 - the loop stands still, as it does in a paused machine
    with pytest.raises(TimeoutError):
        await question


async def test_a_child_that_wants_to_compute_is_not_silent(embedder, before, monkeypatch):
    """A child that gets none of the processor's time is ready to run, and has not failed."""
    monkeypatch.setattr(embedder_child, "process_cpu_s", lambda _pid: 1.0)
    await before("compute")
    with pytest.raises(TimeoutError):
        await embedder.embed_query("q", timeout_s=0.2)


async def test_a_child_that_is_being_replaced_is_not_at_work(embedder):
    """What loads its model computes, and is nevertheless not there."""
    os.kill(embedder._child.pid, signal.SIGKILL)
    await until(lambda: not embedder.alive)
    with pytest.raises(EmbedderUnavailable):
        await embedder.embed_query("q", timeout_s=0.001)


async def test_a_child_out_of_step_is_replaced(embedder):
    """An answer of the wrong size is never taken for vectors."""
    with pytest.raises(EmbedderUnavailable):
        await embedder.embed_query("garbage")
    assert (await embedder.embed_query("next")).tolist() == [4.0]
    assert embedder.restarts == 1


async def test_a_batch_that_fails_costs_no_restart(embedder):
    """The child lives on after an error of its own."""
    with pytest.raises(EmbedderUnavailable, match="RuntimeError"):
        await embedder.embed_query("bad")
    assert (await embedder.embed_query("next")).tolist() == [4.0]
    assert embedder.restarts == 0


async def test_questions_fail_at_once_while_the_child_cannot_start(embedder, tmp_path):
    """Nobody waits for what does not come up; it is tried again until it does."""
    (tmp_path / "no start").touch()
    with pytest.raises(EmbedderUnavailable):
        await embedder.embed_query("die")
    await until(lambda: embedder._failed_starts > 0)
    with pytest.raises(EmbedderUnavailable, match="does not come up") as caught:
        await embedder.embed_query("q")
    assert caught.value.retry_after_s is not None
    assert not embedder.alive
    (tmp_path / "no start").unlink()
    await until(lambda: embedder.alive and not embedder._failed_starts)
    assert (await embedder.embed_query("next")).tolist() == [4.0]


async def test_a_child_that_never_starts_is_an_error(tmp_path):
    """The start says that it failed, and leaves no process."""
    for command, word in ((["/no/such/program"], "cannot be started"), (["false"], "code 1")):
        embedder = Embedder(model=tmp_path, threads=1, command=command)
        with pytest.raises(EmbedderUnavailable, match=word):
            await embedder.start()
        assert not embedder.alive
        await embedder.aclose()


async def test_it_comes_up_in_the_background(embedder, tmp_path):
    """Passages wait for the model, questions do not; what cannot start is tried until it does."""
    (tmp_path / "no start").touch()
    late = Embedder(model=tmp_path, threads=1, start_timeout_s=10.0, command=embedder._command)
    with pytest.raises(EmbedderUnavailable, match="not running"):
        await late.embed_query("q")
    late.start_soon()
    assert late.starting
    with pytest.raises(EmbedderUnavailable, match="loading its model"):
        await late.embed_query("q")
    passages = asyncio.create_task(late.embed_passages(["four", "a"]))
    await until(lambda: late._failed_starts > 0)
    assert not late.starting
    with pytest.raises(EmbedderUnavailable, match="does not come up"):
        await late.embed_query("q")
    (tmp_path / "no start").unlink()
    assert (await passages)[:, 0].tolist() == [4, 1]
    assert (await late.embed_query("query")).tolist() == [5.0]
    assert late.alive
    assert not late.starting
    await late.aclose()


async def test_no_texts_give_no_rows(embedder):
    """Of the right width."""
    assert (await embedder.embed_passages([])).shape == (0, 1)


async def test_closing_tells_those_who_wait(embedder, tmp_path):
    """Neither the one in flight nor the one queued hangs, and the child is gone."""
    tasks = [asyncio.create_task(embedder.embed_query("wait"))]
    await until((tmp_path / "waiting").exists)
    tasks.append(asyncio.create_task(embedder.embed_query("q")))
    await asyncio.sleep(0)
    pid = embedder._child.pid
    await embedder.aclose()
    for task in tasks:
        with pytest.raises(EmbedderUnavailable, match="shutting down"):
            await task
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(EmbedderUnavailable, match="not running"):
        await embedder.embed_query("late")


async def test_a_bug_of_ours_costs_one_request_and_a_child(embedder, monkeypatch):
    """Whoever waited is told, and the next one is served by a child that begins anew."""
    monkeypatch.setattr(concurrency, "AFTER_BUG_S", 0.0)

    async def broken(*_, **__):
        raise KeyError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(embedder_child.EmbedderChild, "embed", broken)
        with pytest.raises(EmbedderUnavailable, match="The log tells what"):
            await embedder.embed_query("four")
    assert (await embedder.embed_query("four")).tolist() == [4.0]
    assert embedder.restarts == 1
