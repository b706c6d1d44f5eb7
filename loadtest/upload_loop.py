"""
Uploads and deletions in a loop, a large PDF among them: memory and disk have to be flat.

    make upload-loop [ROUNDS=1000] [PDFS=<folder>] [OUT=reports/upload_loop.json]

Starts the orchestrator, goes round a hundredth and more of the loop to warm up, then measures, loops, and
measures again. Each round uploads one PDF, waits until it is searchable, and deletes it; every so often
the large one (1,000 pages, or the largest of PDFS) is uploaded over and over by several clients at once,
who go away before it is read. The exit code is 1 if memory or disk end more than 5 % above.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2
import psutil

from loadtest.programs import commit, machine
from loadtest.stack import NO_ENGINE, orchestrator
from tests import pdfs

MAX_GROWTH = 0.05
WARM_UP_SHARE = 0.05
LARGE_EVERY = 100
LARGE_AT_ONCE = 4
LARGE_PAGES = 1000
SETTLE_S = 20.0
LOOK_S = 0.2
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Held:
    """What is held at rest: memory of the whole process tree, and disk of the data folder, in bytes."""

    memory_bytes: int
    disk_bytes: int


class PeakWatch:
    """The most memory that a process tree held while it was looked at."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.peak_bytes = 0

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def stop(self) -> int:
        """Look no more; gives the peak."""
        self._stop.set()
        self._thread.join()
        return self.peak_bytes

    def _look(self) -> None:
        while not self._stop.wait(LOOK_S):
            self.peak_bytes = max(self.peak_bytes, tree_bytes(self._pid))


def tree_bytes(pid: int) -> int:
    """Memory of a process and of all below it, each shared page counted once (PSS)."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_full_info().pss
    return total


def disk_bytes(folder: Path) -> int:
    """What the files of a folder take on disk."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_blocks * 512
    return total


class Loop:
    """
    The rounds.

    Args:
        url: The orchestrator.
        files: PDFs, by name; each upload adds a comment, so that no two are the same.
        large: The one that is large.
    """

    def __init__(self, url: str, files: dict[str, bytes], large: bytes) -> None:
        self._http = httpx2.Client(base_url=url, timeout=600, trust_env=False)
        self._files = list(files.items())
        self._large = large
        self._count = 0
        self.outcomes: Counter[str] = Counter()

    def rounds(self, count: int) -> None:
        """So many uploads, each deleted again."""
        for _ in range(count):
            self._count += 1
            if self._count % LARGE_EVERY == 0:
                self._attack()
            name, data = self._files[self._count % len(self._files)]
            self._delete(self._upload(name, data, wait=True))

    def _upload(self, name: str, data: bytes, *, wait: bool) -> str | None:
        body = data + f"\n% {self._count} {threading.get_ident()} {time.monotonic_ns()}\n".encode()
        response = self._http.post(
            "/upload",
            params={"wait": str(wait).lower()},
            files={"file": (name, body, "application/pdf")},
        )
        if response.is_success:
            document = response.json()["documents"][0]
            self.outcomes[document["status"] if wait else "acknowledged"] += 1
            return str(document["id"])
        self.outcomes[str(response.json()["error"]["code"])] += 1
        return None

    def _attack(self) -> None:
        """The large PDF by several at once, deleted while it is being read."""
        with ThreadPoolExecutor(LARGE_AT_ONCE) as pool:
            ids = list(
                pool.map(
                    lambda n: self._upload(f"large-{n}.pdf", self._large, wait=False),
                    range(LARGE_AT_ONCE),
                )
            )
        time.sleep(1.0)
        for document_id in ids:
            self._delete(document_id)

    def _delete(self, document_id: str | None) -> None:
        if document_id is not None:
            self._http.delete(f"/documents/{document_id}").raise_for_status()

    def clear(self) -> None:
        """Delete whatever is left, such as documents that failed."""
        for document in self._http.get("/documents", params={"limit": "1000"}).json()["documents"]:
            self._delete(document["id"])


def _files(folder: Path | None) -> tuple[dict[str, bytes], bytes]:
    if folder is None:
        pages = [f"Page {n} of the large one tells of it. " * 40 for n in range(LARGE_PAGES)]
        return {"handbook.pdf": pdfs.handbook(), "odd.pdf": pdfs.damaged()}, pdfs.text_pdf(pages)
    by_size = sorted(folder.glob("*.pdf"), key=lambda path: path.stat().st_size)
    small = {path.name: path.read_bytes() for path in by_size[: max(1, len(by_size) // 2)]}
    return small | {"odd.pdf": pdfs.damaged()}, by_size[-1].read_bytes()


def _held(pid: int, data: Path) -> Held:
    time.sleep(SETTLE_S)
    return Held(tree_bytes(pid), disk_bytes(data))


def loop(rounds: int, folder: Path | None) -> tuple[Held, Held, int, Counter[str]]:
    """What was held before and after so many rounds, the peak in between, and the outcomes."""
    files, large = _files(folder)
    with (
        tempfile.TemporaryDirectory() as place,
        orchestrator(Path(place), NO_ENGINE, ready_path="/healthz") as running,
    ):
        pid = running.process.pid
        going = Loop(running.url, files, large)
        data = Path(place) / "data"
        going.rounds(max(LARGE_EVERY, round(rounds * WARM_UP_SHARE)))
        going.clear()
        before = _held(pid, data)
        watch = PeakWatch(pid)
        watch.start()
        going.rounds(rounds)
        going.clear()
        peak_bytes = watch.stop()
        return before, _held(pid, data), peak_bytes, going.outcomes


def main() -> int:
    """Loop, and print what is held; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--pdfs", type=Path)
    parser.add_argument("--out", type=Path, default=Path("reports/upload_loop.json"))
    options = parser.parse_args()
    before, after, peak_bytes, outcomes = loop(options.rounds, options.pdfs)
    memory = after.memory_bytes / before.memory_bytes - 1
    disk = after.disk_bytes / before.disk_bytes - 1
    print(f"{machine()}, commit {commit()}: {options.rounds} uploads and deletions\n")
    print("| | before | after | change |\n|---|---|---|---|")
    print(
        f"| memory, MiB | {before.memory_bytes / MIB:.0f} | {after.memory_bytes / MIB:.0f} | "
        f"{memory:+.1%} |\n"
        f"| disk, MiB | {before.disk_bytes / MIB:.1f} | {after.disk_bytes / MIB:.1f} | {disk:+.1%} |"
    )
    print(f"\npeak: {peak_bytes / MIB:.0f} MiB; outcomes: {dict(outcomes)}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": machine(),
        "commit": commit(),
        "before": asdict(before),
        "after": asdict(after),
        "peak_bytes": peak_bytes,
        "outcomes": outcomes,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    return int(memory > MAX_GROWTH or disk > MAX_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
