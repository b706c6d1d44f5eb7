"""
How fast PDFs become searchable, against the embedder alone; and what questions notice of it.

    make ingest PDFS=<folder> [REPEATS=3] [OUT=reports/ingest.json]

Three parts, each with the real embedder and parser; the simulator stands for the engine.

- **speed**: all PDFs of the folder, uploaded at once: pages a second, pictures left out, until the last
  one can be searched; beside it the embedding model alone, as sentence-transformers computes it, on the
  very same chunks, in its own best order and batch, with every core.
- **size**: 10, 100 and 1,000 copies of a seven-page PDF: seconds and disk a document.
- **asks**: questions in an open loop, first alone and then while the folder is being uploaded over and
  over: how long they took (50 %, 99 %).
"""

import argparse
import asyncio
import json
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2

from loadtest.figures import percentile
from loadtest.programs import ROOT, commit, machine, wait_until_up
from loadtest.stack import H100_LIKE, ORCHESTRATOR_START_S, orchestrator, simulator
from loadtest.upload_loop import disk_bytes
from orchestrator.domain import Chunk
from orchestrator.retrieval.embedder_model import bundled_embedder, embedding_text
from tests.pdfs import HANDBOOK_QUESTIONS, handbook

SIZES = (10, 100, 1000)
ASKS_PER_S = 4.0
ASKS_S = 75.0
ANSWER_TOKENS = 48
POLL_S = 0.1

BARE = """
import json, sys, time
import torch
from pathlib import Path
from sentence_transformers import SentenceTransformer
from orchestrator.retrieval.embedder_process import cpu_has_bfloat16
texts = json.load(open(sys.argv[2]))
model = SentenceTransformer(sys.argv[1], device="cpu")
if cpu_has_bfloat16(Path("/proc/cpuinfo").read_text()):
    model.to(torch.bfloat16)
model.encode(texts[:64], batch_size=int(sys.argv[3]))
began = time.monotonic()
model.encode(texts, batch_size=int(sys.argv[3]), convert_to_tensor=True)
print(time.monotonic() - began)
"""
BARE_BATCHES = (16, 32, 64)


@dataclass(frozen=True, slots=True)
class Speed:
    """One run over the folder: ours, and the embedder alone on the same chunks, in seconds."""

    pages: int
    chunks: int
    ours_s: float
    bare_s: float


@dataclass(frozen=True, slots=True)
class Size:
    """What so many documents take: seconds and bytes of disk for each."""

    documents: int
    s_a_document: float
    bytes_a_document: float


@contextmanager
def fresh(folder: Path, engine_url: str) -> Iterator[httpx2.Client]:
    """A client of an orchestrator with an empty data folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    # A picture takes seconds to be read, in a process of its own: not what is compared here.
    with orchestrator(folder, engine_url, {"OCR": "false"}) as program:
        wait_until_up(program, "embedder", within_s=ORCHESTRATOR_START_S)
        yield program.http


def ingest(http: httpx2.Client, files: Sequence[tuple[str, bytes]]) -> float:
    """Seconds from the first upload until the last document is ready or failed."""
    began_s = time.monotonic()
    for name, data in files:
        http.post("/upload", files={"file": (name, data, "application/pdf")}, timeout=600)
    while True:
        states = http.get("/status").json()["documents"]["by_status"]
        if not states.keys() - {"ready", "failed"}:
            return time.monotonic() - began_s
        time.sleep(POLL_S)


def bare_s(folder: Path) -> float:
    """Seconds that the embedding model alone takes for the chunks in a data folder, at its best."""
    with sqlite3.connect(folder / "data" / "tidegate.db") as db:
        rows = db.execute(
            "SELECT filename, chunks.text FROM chunks JOIN documents ON seq = document_seq"
            " ORDER BY chunks.id"
        ).fetchall()
    texts = [embedding_text(name, Chunk(0, text, 1, 1, 0, 0, "", 0)) for name, text in rows]
    listed = folder / "texts.json"
    listed.write_text(json.dumps(texts))
    found = []
    for batch in BARE_BATCHES:
        command = [sys.executable, "-c", BARE, str(bundled_embedder()), str(listed), str(batch)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        found.append(float(done.stdout.split()[-1]))
    return min(found)


def speed(http: httpx2.Client, folder: Path, files: Sequence[tuple[str, bytes]]) -> Speed:
    """The folder's documents, then the embedder alone."""
    took_s = ingest(http, files)
    documents = http.get("/documents", params={"limit": "1000"}).json()["documents"]
    ready = [d for d in documents if d["status"] == "ready"]
    pages, chunks = sum(d["pages"] for d in ready), sum(d["chunks"] for d in ready)
    return Speed(pages, chunks, took_s, bare_s(folder))


def size(http: httpx2.Client, folder: Path, documents: int) -> Size:
    """So many copies of the handbook, no two the same."""
    data = handbook()
    copies = [(f"{n}.pdf", data + f"\n% {n}\n".encode()) for n in range(documents)]
    took_s = ingest(http, copies)
    return Size(documents, took_s / documents, disk_bytes(folder / "data") / documents)


async def ask_for(url: str, seconds: float) -> list[float]:
    """Seconds that each question took, asked in an open loop; a failed one counts as infinite."""
    taken: list[float] = []

    async def one(http: httpx2.AsyncClient, number: int) -> None:
        question = HANDBOOK_QUESTIONS[number % len(HANDBOOK_QUESTIONS)].question
        body = {"question": f"{question} ({number})", "max_tokens": ANSWER_TOKENS, "degrade": False}
        began_s = time.monotonic()
        response = await http.post("/ask", json=body | {"collection": "asked"})
        taken.append(time.monotonic() - began_s if response.is_success else float("inf"))

    async with (
        httpx2.AsyncClient(base_url=url, timeout=120, trust_env=False) as http,
        asyncio.TaskGroup() as asking,
    ):
        began_s = time.monotonic()
        for number in range(int(seconds * ASKS_PER_S)):
            await asyncio.sleep(max(0.0, began_s + number / ASKS_PER_S - time.monotonic()))
            asking.create_task(one(http, number))
    return taken


async def beside_uploads(
    url: str, files: Sequence[tuple[str, bytes]]
) -> tuple[list[float], list[float]]:
    """Question times alone, and while the files are uploaded over and over."""
    alone = await ask_for(url, ASKS_S)
    asking = asyncio.create_task(ask_for(url, ASKS_S))
    async with httpx2.AsyncClient(base_url=url, timeout=600, trust_env=False) as http:
        number = 0
        while not asking.done():
            name, data = files[number % len(files)]
            stamped = data + f"\n% {number}\n".encode()
            await http.post("/upload", files={"file": (name, stamped)}, data={"collection": "bulk"})
            number += 1
            waiting = (await http.get("/status")).json()["documents"]["queued"]
            while waiting > len(files) and not asking.done():
                await asyncio.sleep(POLL_S)
                waiting = (await http.get("/status")).json()["documents"]["queued"]
    return alone, await asking


def _asks(
    http: httpx2.Client, files: Sequence[tuple[str, bytes]]
) -> tuple[list[float], list[float]]:
    http.post(
        "/upload",
        params={"wait": "true"},
        files={"file": ("handbook.pdf", handbook(), "application/pdf")},
        data={"collection": "asked"},
    ).raise_for_status()
    return asyncio.run(beside_uploads(str(http.base_url), files))


def measure(
    folder: Path, files: Sequence[tuple[str, bytes]], repeats: int, parts: Sequence[str]
) -> dict[str, Any]:
    """The parts asked for, each with a fresh orchestrator."""
    report: dict[str, Any] = {"machine": machine(), "commit": commit()}
    with simulator(folder, H100_LIKE) as (_, engine_url):
        place = folder / "run"
        if "speed" in parts:
            runs = []
            for _ in range(repeats):
                with fresh(place, engine_url) as http:
                    runs.append(speed(http, place, files))
                    print(runs[-1], file=sys.stderr, flush=True)
            report["speed"] = [asdict(run) for run in runs]
        if "size" in parts:
            report["size"] = []
            for documents in SIZES:
                with fresh(place, engine_url) as http:
                    found = size(http, place, documents)
                    print(found, file=sys.stderr, flush=True)
                    report["size"].append(asdict(found))
        if "asks" in parts:
            with fresh(place, engine_url) as http:
                alone, beside = _asks(http, files)
            report["asks"] = {"alone_s": alone, "beside_s": beside}
    return report


def _print(report: dict[str, Any]) -> None:
    print(f"{report['machine']}, commit {report['commit']}\n")
    if runs := report.get("speed"):
        ours = statistics.median(run["pages"] / run["ours_s"] for run in runs)
        share = statistics.median(run["bare_s"] / run["ours_s"] for run in runs)
        first = runs[0]
        print(
            f"speed: {first['pages']} pages, {first['chunks']} chunks: {ours:.1f} pages/s, "
            f"{share:.0%} of the embedder alone (medians of {len(runs)})"
        )
    for row in report.get("size", ()):
        print(
            f"size: {row['documents']} documents: {row['s_a_document']:.2f} s and "
            f"{row['bytes_a_document'] / 1024:.0f} KiB each"
        )
    if asks := report.get("asks"):
        for share in (0.5, 0.99):
            alone, beside = (percentile(asks[key], share) or 0 for key in ("alone_s", "beside_s"))
            print(
                f"asks, {share:.0%}: {alone * 1000:.0f} ms alone, {beside * 1000:.0f} ms beside "
                f"uploads: {beside / alone:.2f} times"
            )


def main() -> None:
    """Measure, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--pdfs", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3, help="of the first part")
    parser.add_argument("--parts", default="speed,size,asks")
    parser.add_argument("--out", type=Path, default=Path("reports/ingest.json"))
    options = parser.parse_args()
    files = [(path.name, path.read_bytes()) for path in sorted(options.pdfs.glob("*.pdf"))]
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Path(folder), files, options.repeats, options.parts.split(","))
    _print(report)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
