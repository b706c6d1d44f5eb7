"""
kill -9 of the orchestrator, again and again, while documents come, go and are replaced: what is lost.

    make crash-kills [KILLS=500] [PDFS=<folder>] [OUT=reports/crash_kills.json]

The orchestrator works on real PDFs (those of PDFS, and generated ones) for a few clients that upload,
replace, delete and search without a pause, and is killed at a random moment, inside a system call that
writes (seen in /proc), or while it saves a snapshot in its orderly end. It is started again on what is
left: every acknowledged document has to be there and every deleted one gone, nothing on disk may lack
what belongs to it, and it has to be ready within 5 s. Every so often, and at the end, all work is let
finish: then each document is ready, has as many chunks as the same bytes gave the first time, and is
found. The exit code is 1 if a promise was broken.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2

from loadtest.crash_ledger import TERMINAL, Ledger
from loadtest.figures import percentile
from loadtest.programs import ROOT, are_up, commit, end_in_order, free_port, machine
from loadtest.stack import simulator
from orchestrator.retrieval.database import Database
from orchestrator.retrieval.store_check import StoreCheck
from tests import pdfs

READY_S = 5.0
START_S = 60.0
STANDSTILL_S = 120.0
"""Work is stuck if no document has been finished for so long; a large one takes some twenty seconds."""
TELLING_S = 1.0
LOG_SHOWN_CHARS = 20_000
CLIENTS = 3
LONGEST_CALM_S = 2.0
LONGEST_WATCH_S = 4.0
QUIET_EVERY = 25
MAX_DOCUMENTS = 24
"""Beside the first ones: beyond it clients delete more than they add."""
MAX_QUEUED = 16
"""Beyond it uploads are refused: replacements pile up faster than two cores can embed them."""
EMBEDDING_SHARE = 0.6
"""Kills that wait for the embedder's model first: before that nothing is embedded or published."""
LOOK_S = 0.02
SERVER_ERROR = 500
SEED = 20260713
# x86-64; each is a moment at which the kernel holds half of what we are doing.
SYSCALLS = {"fsync": 74, "fdatasync": 75, "pwrite64": 18, "write": 1, "rename": 82, "unlink": 87}
MODES = ("moment", "moment", "moment", "syscall", "syscall", "ending")


@dataclass(frozen=True, slots=True)
class Kill:
    """
    One kill and what followed.

    Attributes:
        mode: How the moment was chosen: "moment", "ending", or the system call it was in.
        at_work: What was under way: acts of clients, states of documents.
        ready_s: From the next start to ready.
        broken: Promises that did not hold.
    """

    mode: str
    at_work: tuple[str, ...]
    ready_s: float
    broken: tuple[str, ...]


class Clients:
    """
    A few clients that never pause, until the orchestrator is gone.

    Args:
        sources: The bytes of PDFs, by a name; each upload is one of them with a comment at its end.
    """

    def __init__(self, url: str, ledger: Ledger, sources: dict[str, bytes], seed: int) -> None:
        self._url = url
        self._ledger = ledger
        self._sources = sources
        self._names = itertools.count()
        self._seed = seed
        self._stop = threading.Event()
        self.acts: dict[int, str] = {}
        self._threads = [
            threading.Thread(target=self._act, args=(n,), daemon=True) for n in range(CLIENTS)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait until the last act has ended, one way or the other."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _act(self, number: int) -> None:
        rng = random.Random(self._seed + number)  # noqa: S311 - moments of a test
        with httpx2.Client(base_url=self._url, timeout=30, trust_env=False) as http:
            while not self._stop.is_set():
                living = [n for n in self._ledger.living() if not n.startswith("first-")]
                acts: list[Callable[[], None]] = [
                    lambda: self._upload(http, rng, None),
                    lambda: self._search(http),
                ]
                if living:
                    name = rng.choice(living)
                    acts += [
                        lambda name=name: self._upload(http, rng, name),  # type: ignore[misc]
                        lambda name=name: self._delete(http, name),  # type: ignore[misc]
                    ]
                if len(living) > MAX_DOCUMENTS:
                    acts = acts[-1:]
                act = rng.choice(acts)
                with contextlib.suppress(httpx2.HTTPError):
                    act()

    def _upload(self, http: httpx2.Client, rng: random.Random, replaces: str | None) -> None:
        source = rng.choice(sorted(self._sources))
        name = f"{self._seed}-{next(self._names)}-{source}"
        self.acts[threading.get_ident()] = "replace" if replaces else "upload"
        fields = {}
        if replaces is not None:
            fields["replaces"] = self._ledger.entries[replaces].document_id
        self._ledger.sending(name, source, replaces=replaces)
        data = self._sources[source] + f"\n% {name}\n".encode()
        response = http.post(
            "/upload", files={"file": (name, data, "application/pdf")}, data=fields
        )
        if response.is_success:
            self._ledger.taken(name, response.json()["documents"][0]["id"])
        elif response.status_code < SERVER_ERROR:
            # Too many wait, or what it should replace was deleted meanwhile.
            self._ledger.refused(name)
        self.acts.pop(threading.get_ident(), None)

    def _delete(self, http: httpx2.Client, name: str) -> None:
        self.acts[threading.get_ident()] = "delete"
        self._ledger.deleting(name)
        response = http.delete(f"/documents/{self._ledger.entries[name].document_id}")
        if response.is_success:
            self._ledger.deleted(name)
        self.acts.pop(threading.get_ident(), None)

    def _search(self, http: httpx2.Client) -> None:
        self.acts[threading.get_ident()] = "search"
        http.post("/search", json={"question": "Who keeps the gate, and what is the revenue?"})
        self.acts.pop(threading.get_ident(), None)


@dataclass(slots=True)
class Trial:
    """One data folder, through all its crashes."""

    folder: Path
    engine_url: str
    ledger: Ledger
    chunks: dict[str, int]

    @contextmanager
    def started(self) -> Iterator[tuple[subprocess.Popen[bytes], str, float]]:
        """The orchestrator, where it listens, and how long it took to be ready; killed at the end."""
        port = free_port()
        environment = {
            "ORCHESTRATOR_PORT": str(port),
            "ORCHESTRATOR_DATA_DIR": str(self.folder),
            "ORCHESTRATOR_ENGINE_URL": self.engine_url,
            "ORCHESTRATOR_MIN_FREE_DISK_BYTES": "0",
            "ORCHESTRATOR_MAX_QUEUED_DOCUMENTS": str(MAX_QUEUED),
            "ORCHESTRATOR_OCR": "false",  # seconds a page: there would be fewer moments
        }
        url = f"http://127.0.0.1:{port}"
        with (self.folder.parent / "orchestrator.log").open("ab") as log:
            began_s = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", "serve"],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            _wait_ready(process, url, self.folder.parent / "orchestrator.log")
            yield process, url, time.monotonic() - began_s
        finally:
            process.kill()
            process.wait()

    def stored(self, http: httpx2.Client) -> dict[str, dict[str, Any]]:
        """All documents that the orchestrator lists, by their file's name."""
        found: dict[str, dict[str, Any]] = {}
        after: str | None = None
        while True:
            query = {"limit": "1000"} | ({"after": after} if after else {})
            page = http.get("/documents", params=query).raise_for_status().json()
            found |= {document["filename"]: document for document in page["documents"]}
            if (after := page["next"]) is None:
                return found

    def _tell_stacks(self, pid: int) -> None:
        """Let the orchestrator tell where everybody is, and show the end of its log."""
        os.kill(pid, signal.SIGUSR1)
        time.sleep(TELLING_S)
        log = (self.folder.parent / "orchestrator.log").read_text(errors="replace")
        sys.stderr.write(log[-LOG_SHOWN_CHARS:])

    def broken(self, http: httpx2.Client) -> list[str]:
        """Promises that do not hold now, beside work that goes on."""
        found = self.ledger.broken_promises(self.stored(http))
        # A document that is replaced between two looks of the check is no finding: the next has none.
        first = _findings(self.folder)
        lasting = set(_findings(self.folder)) if first else set()
        return [*found, *(what for what in first if what in lasting)]

    def settled(self, http: httpx2.Client, pid: int) -> list[str]:
        """Let all work of the orchestrator with this pid finish; promises that do not hold then."""
        stored, since_s = self.stored(http), time.monotonic()
        while not are_up(http, "embedder") or _unfinished(stored):
            if time.monotonic() - since_s > STANDSTILL_S:
                self._tell_stacks(pid)
                return [f"no document is finished any more: {_what_stands(http, stored)}"]
            time.sleep(0.2)
            before, stored = stored, self.stored(http)
            if _unfinished(before).keys() != _unfinished(stored).keys():
                since_s = time.monotonic()
        found = self.broken(http)
        for name, document in stored.items():
            if document["status"] != "ready":
                found.append(f"{name} has failed: {document['error']}")
                continue
            source = self.ledger.entries[name].source
            expected = self.chunks.setdefault(source, document["chunks"])
            if document["chunks"] != expected:
                found.append(f"{name} has {document['chunks']} chunks, and had {expected}")
        return [*found, *_not_found(http, stored)]


def _unfinished(stored: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Status of those that are still to be worked on, by name."""
    return {name: d["status"] for name, d in stored.items() if d["status"] not in TERMINAL}


def _what_stands(http: httpx2.Client, stored: dict[str, dict[str, Any]]) -> str:
    """Who is not finished, and what the orchestrator says of itself: a hang leaves nothing else."""
    status = http.get("/status").json()
    shown = {
        "documents": _unfinished(stored),
        "ready": http.get("/readyz").json()["dependencies"],
        "status": {part: status[part] for part in ("embedder", "documents", "process")},
    }
    return json.dumps(shown)


def _wait_until_it_embeds(http: httpx2.Client) -> None:
    until_s = time.monotonic() + START_S
    while not are_up(http, "embedder") and time.monotonic() < until_s:
        time.sleep(LOOK_S)


def _not_found(http: httpx2.Client, stored: dict[str, dict[str, Any]]) -> list[str]:
    """Documents that a search among them does not find, and vectors that the index lacks."""
    found = []
    for name, document in stored.items():
        body = {"question": "Who keeps the gate?", "document_ids": [document["id"]], "top_k": 1}
        response = _searched(http, body)
        if not (response.is_success and response.json()["passages"]):
            found.append(f"{name} is not found: {response.status_code}")
    vectors = sum(http.get("/status").json()["indexes"]["vectors"].values())
    chunks = sum(document["chunks"] for document in stored.values())
    if vectors != chunks:
        found.append(f"the index has {vectors} vectors for {chunks} chunks")
    return found


def _searched(http: httpx2.Client, body: dict[str, Any]) -> httpx2.Response:
    """What a search gives, once the index is loaded if it was not yet: words may find nothing."""
    until_s = time.monotonic() + START_S
    while True:
        response = http.post("/search", json=body)
        loading = not response.is_success and response.json()["error"]["code"] == "index_not_ready"
        if not loading or time.monotonic() > until_s:
            return response
        time.sleep(float(response.headers["Retry-After"]))


def _findings(folder: Path) -> list[str]:
    database = Database(path=folder / "tidegate.db")
    database.open()
    try:
        return [f.what for f in StoreCheck(folder=folder, database=database).findings()]
    finally:
        database.close()


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until_s = time.monotonic() + START_S
    with httpx2.Client(base_url=url, timeout=5, trust_env=False) as http:
        while time.monotonic() < until_s and process.poll() is None:
            with contextlib.suppress(httpx2.HTTPError):
                if http.get("/readyz").is_success:
                    return
            time.sleep(LOOK_S)
    end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    raise SystemExit(f"the orchestrator did not come up ({process.poll()}):\n{end}")


def _in_syscall(pid: int, number: int) -> bool:
    """Whether a thread of the process is in this system call now."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            if (task / "syscall").read_text().split(maxsplit=1)[0] == str(number):
                return True
    return False


def strike(process: subprocess.Popen[bytes], rng: random.Random) -> str:
    """Kill it at a moment of the chosen kind; tells which kind it was."""
    mode = rng.choice(MODES)
    time.sleep(rng.uniform(0, LONGEST_CALM_S))
    if mode == "syscall":
        name = rng.choice(sorted(SYSCALLS))
        until_s = time.monotonic() + LONGEST_WATCH_S
        while time.monotonic() < until_s:
            if _in_syscall(process.pid, SYSCALLS[name]):
                process.kill()
                return name
        mode = "moment"
    if mode == "ending":
        process.send_signal(signal.SIGTERM)
        time.sleep(rng.uniform(0, 1.0))
    process.kill()
    return mode


def kill_once(trial: Trial, sources: dict[str, bytes], number: int, *, settle: bool) -> Kill:
    """Start, look, let clients act, and kill."""
    rng = random.Random(SEED + number)  # noqa: S311 - moments of a test
    with trial.started() as (process, url, ready_s):
        with _client(url) as http:
            broken = trial.settled(http, process.pid) if settle else trial.broken(http)
            if rng.random() < EMBEDDING_SHARE:
                _wait_until_it_embeds(http)
            trial.ledger.come_through(trial.stored(http))
            clients = Clients(url, trial.ledger, sources, SEED + number * CLIENTS)
            clients.start()
            mode = strike(process, rng)
            at_work = tuple(sorted(clients.acts.values()))
        process.wait()
        clients.stop()
    return Kill(mode, at_work, ready_s, tuple(broken))


def _sources(folder: Path | None) -> dict[str, bytes]:
    """Small PDFs for the clients: of the kinds that make the ways through the code differ."""
    made = {
        "handbook.pdf": pdfs.handbook(),
        "long.pdf": pdfs.text_pdf([
            f"Page {n} of the long one tells of it. " * 40 for n in range(60)
        ]),
        "mixed.pdf": pdfs.mixed(["Written page one.", "Written page two."], image_pages=2),
    }
    if folder is not None:
        smallest = sorted(folder.glob("*.pdf"), key=lambda path: path.stat().st_size)[:6]
        made |= {path.name: path.read_bytes() for path in smallest}
    return made


def _first_documents(trial: Trial, folder: Path | None, sources: dict[str, bytes]) -> None:
    """The library that is there from the beginning, and how many chunks each source gives."""
    first = dict(sources)
    if folder is not None:
        first |= {path.name: path.read_bytes() for path in sorted(folder.glob("*.pdf"))}
    with trial.started() as (_, url, _), _client(url) as http:
        for source, data in first.items():
            name = f"first-{source}"
            response = http.post(
                "/upload",
                params={"wait": "true"},
                files={"file": (name, data, "application/pdf")},
            )
            if response.is_success:
                document = response.json()["documents"][0]
                trial.ledger.sending(name, source)
                trial.ledger.taken(name, document["id"])
                trial.chunks[source] = document["chunks"]
            else:
                sources.pop(source, None)
                if refused := trial.stored(http).get(name):
                    http.delete(f"/documents/{refused['id']}")


def _client(url: str) -> httpx2.Client:
    return httpx2.Client(base_url=url, timeout=600, trust_env=False)


def _table(kills: Sequence[Kill]) -> str:
    modes = Counter(kill.mode for kill in kills)
    acts = Counter(act for kill in kills for act in kill.at_work)
    ready = [kill.ready_s for kill in kills]
    return (
        f"kills: {len(kills)} ({', '.join(f'{n} {mode}' for mode, n in modes.most_common())})\n"
        f"under way when struck: {', '.join(f'{n} {act}' for act, n in acts.most_common())}\n"
        f"ready again: median {statistics.median(ready):.1f} s, "
        f"p99 {percentile(ready, 0.99) or 0:.1f} s, worst {max(ready):.1f} s"
    )


def crash(
    kills: int, folder: Path | None, *, first: int = 1, settle_every: int = QUIET_EVERY
) -> list[Kill]:
    """
    So many kills, one after the other, and a last look when all work has ended.

    Args:
        kills: How many.
        folder: The library that is there from the beginning.
        first: Number of the first one; what is done, and when it ends, is drawn from the number.
        settle_every: After so many all work is let finish.
    """
    done: list[Kill] = []
    with (
        tempfile.TemporaryDirectory() as place,
        simulator(Path(place)) as (_, engine_url),
    ):
        trial = Trial(Path(place) / "data", engine_url, Ledger(), {})
        trial.folder.mkdir()
        sources = _sources(folder)
        _first_documents(trial, folder, sources)
        for number in range(first, first + kills):
            kill = kill_once(trial, sources, number, settle=number % settle_every == 0)
            done.append(kill)
            print(number, kill, file=sys.stderr, flush=True)
        with trial.started() as (process, url, ready_s), _client(url) as http:
            broken = trial.settled(http, process.pid)
            done.append(Kill("last look", (), ready_s, tuple(broken)))
    return done


def main() -> int:
    """Kill, and print what came of it; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--pdfs", type=Path, help="the library that is there from the beginning")
    parser.add_argument("--out", type=Path, default=Path("reports/crash_kills.json"))
    parser.add_argument(
        "--first", type=int, default=1, help="number of the first: goes on where a run has ended"
    )
    options = parser.parse_args()
    end_in_order()
    kills = crash(options.kills, options.pdfs, first=options.first)
    broken = [f"kill {n}: {what}" for n, kill in enumerate(kills) for what in kill.broken]
    late = [kill.ready_s for kill in kills if kill.ready_s > READY_S]
    print(f"\n{machine()}, commit {commit()}\n\n{_table(kills)}")
    print("\n".join(broken) or "nothing acknowledged was lost, nothing left over, nothing torn")
    if late:
        print(f"ready later than {READY_S:g} s: {len(late)} times, at worst {max(late):.1f} s")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine(), "commit": commit(), "kills": [asdict(k) for k in kills]}
    options.out.write_text(json.dumps({**report, "broken": broken}, indent=1) + "\n")
    return int(bool(broken or late))


if __name__ == "__main__":
    sys.exit(main())
