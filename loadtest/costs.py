"""
What Tidegate adds, and what it takes: one table, from one run of the real stack.

    make costs [PDFS=folder]

Starts the stack on free ports with an empty data folder, and measures
- start-up, until `ready`;
- ingestion, in pages a second, of a folder of PDFs (without one: of the sample handbook, many times);
- the time that `/ask` adds at one request at a time, against the engine called directly with the very
  same prompt, alternating, retrieval left out.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from pypdf import PdfReader, PdfWriter

from loadtest.corpus import found_passages
from loadtest.programs import ROOT, commit, free_port, machine
from orchestrator.domain import Message
from orchestrator.generation.prompt import assemble

START_S = 600.0
ANSWER_TOKENS = 32
QUESTIONS = (
    "At what water level are the gates closed?",
    "On which VHF channel does the control room listen?",
    "What does a fishing boat pay for passing the lock?",
    "How often are the hydraulic seals replaced?",
)
SAMPLE = ROOT / "docs" / "samples" / "handbook.pdf"
COPIES = 30


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of each repeat: ours without retrieval, and the engine's alone."""

    ours_ms: list[float]
    direct_ms: list[float]

    def added_ms(self) -> list[float]:
        """Ours less the engine's, repeat by repeat."""
        return sorted(a - b for a, b in zip(self.ours_ms, self.direct_ms, strict=True))


@contextmanager
def stack(folder: Path) -> Iterator[tuple[str, str, float]]:
    """The real stack: the orchestrator's address, the engine's, and seconds until ready."""
    ports = {name: free_port() for name in ("PORT", "ENGINE_PORT", "CONTROL_PORT")}
    environment = {**os.environ, "DATA_DIR": str(folder), **{k: str(v) for k, v in ports.items()}}
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.run_stack"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        lines = iter(process.stdout or ())
        while not next(lines, "ready:").startswith("ready:"):
            pass
        if process.poll() is not None:
            raise SystemExit("the stack did not start: run `make run` and read what it says")
        took_s = time.monotonic() - began
        url = f"http://127.0.0.1:{ports['PORT']}"
        yield url, f"http://127.0.0.1:{ports['ENGINE_PORT']}", took_s
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def ingest(http: httpx2.Client, pdfs: list[tuple[str, bytes]]) -> tuple[int, float]:
    """Pages that became searchable, and the seconds from the first upload to the last ready."""
    began = time.monotonic()
    ids = []
    for name, data in pdfs:
        answer = http.post("/upload", files={"file": (name, data)}, data={"collection": "bulk"})
        if answer.is_success:
            ids.append(answer.json()["documents"][0]["id"])
        else:
            print(f"  {name}: {answer.json()['error']['message']}")
    pages = 0
    for document_id in ids:
        while True:
            document = http.get(f"/documents/{document_id}").json()
            if document["status"] in {"ready", "failed"}:
                break
            time.sleep(0.1)
        pages += document["pages"] if document["status"] == "ready" else 0
    return pages, time.monotonic() - began


def latency(http: httpx2.Client, engine: httpx2.Client, repeats: int) -> Latency:
    """The same prompt through `/ask` and straight to the engine, taking turns at going first."""
    model = engine.get("/v1/models").json()["data"][0]["id"]
    ours: list[float] = []
    direct: list[float] = []
    for n in range(repeats + len(QUESTIONS)):
        question = QUESTIONS[n % len(QUESTIONS)]
        prompt = _prompt(http, question)
        if n % 2:
            first, second = _ask(http, question), _direct(engine, model, prompt)
        else:
            second, first = _direct(engine, model, prompt), _ask(http, question)
        if n >= len(QUESTIONS):  # the first round fills the prefix cache for both
            ours.append(first)
            direct.append(second)
    return Latency(ours, direct)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--pdfs", type=Path, help="folder of PDFs for ingestion")
    parser.add_argument("--repeats", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with (
            stack(Path(folder)) as (url, engine_url, first_s),
            httpx2.Client(base_url=url, timeout=300, trust_env=False) as http,
            httpx2.Client(base_url=engine_url, timeout=300, trust_env=False) as engine,
        ):
            handbook = ("handbook.pdf", SAMPLE.read_bytes())
            http.post("/upload?wait=true", files={"file": handbook}).raise_for_status()
            measured = latency(http, engine, arguments.repeats)
            what, pdfs = _pdfs(arguments.pdfs)
            pages, took_s = ingest(http, pdfs)
        with stack(Path(folder)) as (_, _, again_s):
            pass
    _print_table(measured, what, pages, took_s, first_s, again_s)


def _print_table(
    measured: Latency, what: str, pages: int, took_s: float, first_s: float, again_s: float
) -> None:
    added = measured.added_ms()
    p99 = added[min(len(added) - 1, round(0.99 * len(added)))]
    share = statistics.median(measured.ours_ms) / statistics.median(measured.direct_ms)
    print(f"\n{machine()}, no GPU used, commit {commit()}\n")
    print("| what | figure |")
    print("|---|---|")
    print(
        f"| added by `/ask` at c=1, retrieval left out, n={len(added)} "
        f"| p50 {statistics.median(added):.1f} ms, p99 {p99:.1f} ms "
        f"({share:.3f} of the engine alone, {statistics.median(measured.direct_ms):.0f} ms) |"
    )
    print(f"| ingestion of {what} | {pages / took_s:.1f} pages/s ({pages} pages, {took_s:.1f} s) |")
    print(f"| start until ready, engine load included | {first_s:.0f} s |")
    print(f"| the same with documents in the data folder | {again_s:.0f} s |")


def _pdfs(folder: Path | None) -> tuple[str, list[tuple[str, bytes]]]:
    if folder is not None:
        found = sorted(folder.glob("*.pdf"))
        return f"`{folder.name}/` ({len(found)} PDFs)", [(p.name, p.read_bytes()) for p in found]
    return f"the sample handbook, {COPIES} times", [
        (f"handbook-{n}.pdf", _stamped(n)) for n in range(COPIES)
    ]


def _stamped(n: int) -> bytes:
    """The handbook with other metadata: other bytes, so that it is no duplicate."""
    import io  # noqa: PLC0415 - only without a folder of PDFs

    writer = PdfWriter(clone_from=PdfReader(SAMPLE))
    writer.add_metadata({"/Title": f"Copy {n}"})
    target = io.BytesIO()
    writer.write(target)
    return target.getvalue()


def _prompt(http: httpx2.Client, question: str) -> list[Message]:
    """The prompt that `/ask` makes of this question."""
    return assemble(question, found_passages(http, {"question": question}))


def _ask(http: httpx2.Client, question: str) -> float:
    began = time.perf_counter()
    answer = http.post("/ask", json={"question": question, "max_tokens": ANSWER_TOKENS})
    took_ms = (time.perf_counter() - began) * 1000
    return took_ms - float(answer.json()["timings_ms"]["retrieve"])


def _direct(engine: httpx2.Client, model: str, prompt: list[Message]) -> float:
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": m.role, "content": m.content} for m in prompt],
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.perf_counter()
    with engine.stream("POST", "/v1/chat/completions", json=body) as response:
        response.read()
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
