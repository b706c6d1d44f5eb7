"""
Upload every file of a folder, however odd, and see that each is taken or refused cleanly.

    python -m loadtest.nasty --pdfs DIR --bombs                      starts an orchestrator itself
    python -m loadtest.nasty --pdfs DIR --base-url http://HOST:8080 --pid 1234

`--bombs` adds files that are made to take all the time and memory of whoever reads them. Prints how
often each outcome came, the slowest files, what a neighbour who searches meanwhile noticed, and memory
before, at its peak, and after. The exit code is 1 if any answer was a 5xx, had a code that is no
document's error, or took too long, if a search failed, if memory did not come back to within 10 %, or
if a traceback is in the log of an orchestrator that it started.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

from loadtest.figures import percentile
from loadtest.programs import wait_until_up
from loadtest.stack import NO_ENGINE, ORCHESTRATOR_START_S, orchestrator
from loadtest.upload_loop import PeakWatch
from orchestrator.errors import DocumentError, leaves
from tests import pdfs

HANG_S = 60.0
SETTLE_S = 5.0
MAX_GROWTH = 0.10
SLOWEST = 5
SEARCH_EVERY_S = 0.25
MIB = 1024 * 1024
SERVER_ERROR = 500
READY = "ready"
DOCUMENTED = {READY, *(error.code for error in leaves(DocumentError))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one file; `code` is "ready" or the error's. `status` 0 means no answer."""

    file: str
    status: int
    code: str
    seconds: float

    def acceptable(self, *, hang_s: float) -> bool:
        """Whether this is how a service answers."""
        return 0 < self.status < SERVER_ERROR and self.code in DOCUMENTED and self.seconds <= hang_s


def upload(client: httpx2.Client, path: Path) -> Outcome:
    """What the orchestrator makes of the file."""
    began_s = time.monotonic()
    try:
        with path.open("rb") as file:
            response = client.post(
                "/upload",
                params={"wait": "true"},
                files={"file": (path.name, file, "application/pdf")},
            )
        status, code = response.status_code, _code(response)
    except httpx2.HTTPError as exc:
        status, code = 0, type(exc).__name__
    return Outcome(file=path.name, status=status, code=code, seconds=time.monotonic() - began_s)


def _code(response: httpx2.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return "no_json"
    if response.is_error:
        return str(body.get("error", {}).get("code"))
    return str(body["documents"][0]["status"])


def memory_bytes(pid: int) -> int:
    """Resident memory of a process and of all that it started."""
    root = psutil.Process(pid)
    total = 0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


class Neighbour:
    """Somebody who searches all the time, and notes how long each answer took."""

    def __init__(self, base_url: str) -> None:
        self._client = httpx2.Client(base_url=base_url, timeout=HANG_S, trust_env=False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._search, daemon=True)
        self.seconds: list[float] = []
        self.failures: list[str] = []

    def start(self) -> None:
        """Put a document in, and begin to search it."""
        self._client.post(
            "/upload",
            params={"wait": "true"},
            files={"file": ("handbook.pdf", pdfs.handbook(), "application/pdf")},
            data={"collection": "neighbour"},
        ).raise_for_status()
        self._thread.start()

    def stop(self) -> None:
        """Search no more."""
        self._stop.set()
        self._thread.join()
        self._client.close()

    def _search(self) -> None:
        body = {"question": "What does a fishing boat pay?", "collection": "neighbour"}
        while not self._stop.wait(SEARCH_EVERY_S):
            began_s = time.monotonic()
            try:
                response = self._client.post("/search", json=body)
                found = response.is_success and response.json()["passages"]
                if not found:
                    self.failures.append(f"{response.status_code}: {response.text[:200]}")
            except httpx2.HTTPError as exc:
                self.failures.append(type(exc).__name__)
            self.seconds.append(time.monotonic() - began_s)

    def report(self) -> None:
        """Print what was noticed."""
        if not self.seconds:
            return
        p99_ms = 1000 * (percentile(self.seconds, 0.99) or 0)
        print(
            f"\na neighbour's {len(self.seconds)} searches: median "
            f"{1000 * statistics.median(self.seconds):.0f} ms, p99 {p99_ms:.0f} ms, "
            f"{len(self.failures)} failed"
        )
        for failure in self.failures[:SLOWEST]:
            print(f"NOT ACCEPTABLE: a search failed: {failure}")


def bombs(folder: Path) -> None:
    """Files that are small to send and endless to read."""
    made: dict[str, Callable[[], bytes]] = {
        "pages-100000.pdf": lambda: pdfs.many_pages(100_000),
        "pages-4900.pdf": lambda: pdfs.many_pages(4_900),
        "page-tree-loop.pdf": pdfs.page_tree_loop,
        "nesting-200.pdf": lambda: pdfs.deep_nesting(200),
        "nesting-1000000.pdf": lambda: pdfs.deep_nesting(1_000_000),
        "flate-4GB.pdf": lambda: pdfs.flate_bomb(4_000_000_000),
        "flate-300MB.pdf": lambda: pdfs.flate_bomb(300_000_000),
        "operands-30000000.pdf": lambda: pdfs.operand_bomb(30_000_000),
        "text-30MB.pdf": lambda: pdfs.huge_text_page(30_000_000),
        "junk-20MB.pdf": lambda: pdfs.junk_prefixed(20_000_000),
    }
    for name, make in made.items():
        (folder / name).write_bytes(make())


def report(outcomes: Sequence[Outcome], *, hang_s: float) -> None:
    """Print the table of outcomes, the slowest files, and whatever is not acceptable."""
    counts = Counter((outcome.status, outcome.code) for outcome in outcomes)
    print(f"{'status':>6}  {'code':24} {'files':>5}")
    for (status, code), count in sorted(counts.items()):
        print(f"{status:>6}  {code:24} {count:>5}")
    print("\nslowest")
    for outcome in sorted(outcomes, key=lambda o: -o.seconds)[:SLOWEST]:
        print(f"{outcome.seconds:8.2f} s  {outcome.file}")
    for outcome in outcomes:
        if not outcome.acceptable(hang_s=hang_s):
            print(
                f"NOT ACCEPTABLE: {outcome.file}: status {outcome.status}, {outcome.code}, "
                f"{outcome.seconds:.1f} s"
            )


def run(*, folders: Sequence[Path], base_url: str, pid: int | None, hang_s: float) -> int:
    """Upload all files, one after the other, and report; gives the exit code."""
    found = (path for folder in folders for path in folder.rglob("*"))
    files = sorted(path for path in found if path.suffix.lower() == ".pdf")
    if not files:
        print(f"no PDF in {', '.join(map(str, folders))}", file=sys.stderr)
        return 2
    neighbour = Neighbour(base_url)
    neighbour.start()
    before = memory_bytes(pid) if pid else 0
    watch = PeakWatch(pid) if pid else None
    if watch:
        watch.start()
    with httpx2.Client(base_url=base_url, timeout=hang_s + 5) as client:
        outcomes = [upload(client, path) for path in files]
        alive = client.get("/healthz").is_success
    neighbour.stop()
    report(outcomes, hang_s=hang_s)
    neighbour.report()
    if watch:
        print(f"memory at its peak: {watch.stop() // MIB} MiB")
    back = memory_came_back(pid, before) if pid else True
    if not alive:
        print("NOT ACCEPTABLE: /healthz does not answer 200 afterwards")
    well = alive and back and not neighbour.failures
    return 0 if well and all(o.acceptable(hang_s=hang_s) for o in outcomes) else 1


def memory_came_back(pid: int, before: int) -> bool:
    """Whether memory is within the limit again, once idle processes had time to give theirs back."""
    time.sleep(SETTLE_S)
    after = memory_bytes(pid)
    growth = after / before - 1
    print(f"\nmemory: {before // MIB} MiB before, {after // MIB} MiB after ({growth:+.1%})")
    if growth > MAX_GROWTH:
        print(f"NOT ACCEPTABLE: memory grew by more than {MAX_GROWTH:.0%}")
    return growth <= MAX_GROWTH


def main() -> int:
    """Read the command line, and run; gives the exit code."""
    parser = argparse.ArgumentParser(description="Upload a folder of odd PDFs and see what comes.")
    parser.add_argument("--pdfs", type=Path, help="folder of PDFs")
    parser.add_argument("--bombs", action="store_true", help="and files made to be endless")
    parser.add_argument("--base-url", help="a running orchestrator; default: start one")
    parser.add_argument("--pid", type=int, help="its process id, to see its memory")
    parser.add_argument(
        "--hang-s", type=float, default=HANG_S, help="seconds after which a file counts as hanging"
    )
    parser.add_argument(
        "--ocr", action="store_true", help="read pictures too: seconds a page, so give --hang-s"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folders = [options.pdfs] if options.pdfs else []
        if options.bombs:
            folders.append(Path(place) / "bombs")
            folders[-1].mkdir()
            bombs(folders[-1])
        if options.base_url:
            return run(
                folders=folders,
                base_url=options.base_url,
                pid=options.pid,
                hang_s=options.hang_s,
            )
        settings = {"OCR": str(options.ocr).lower()}
        with orchestrator(Path(place), NO_ENGINE, settings, ready_path="/healthz") as ours:
            # Its memory counts, too.
            wait_until_up(ours, "embedder", within_s=ORCHESTRATOR_START_S)
            pid = ours.process.pid
            code = run(folders=folders, base_url=ours.url, pid=pid, hang_s=options.hang_s)
        tracebacks = ours.log.read_text(errors="replace").count("Traceback")
        print(f"tracebacks in the log: {tracebacks}")
        return code or int(tracebacks > 0)


if __name__ == "__main__":
    sys.exit(main())
