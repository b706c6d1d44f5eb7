"""
How often the right page is found: a folder of PDFs, a file of questions, a table.

    make quality PDFS=<folder> QUESTIONS=<file> [ABLATE=1] [OUT=<file>]

The questions are JSON lines with `id`, `pdf`, `question`, `evidence_pages` and, if given, `domain`,
`answer_type`, `alt_pages` and `text_gold` (false: not counted). Everything runs in temporary files;
no engine is needed. For each way of searching the table says how often a gold page is among the
first 1, 5 and 10 pages (distinct, in rank order), and the mean reciprocal rank. With ABLATE each
ingredient is left out, or changed, in its turn, and a second table says what that costs.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.programs import commit, machine
from orchestrator.documents.chunking import Chunker
from orchestrator.documents.sandbox import ParserSandbox, SandboxLimits
from orchestrator.domain import (
    Chunk,
    ChunkId,
    Document,
    DocumentId,
    DocumentStatus,
    Embeddings,
    Page,
    StoredChunk,
)
from orchestrator.errors import DocumentError
from orchestrator.retrieval.collection_indexes import CollectionIndexes
from orchestrator.retrieval.document_store import DocumentStore
from orchestrator.retrieval.embedder import Embedder
from orchestrator.retrieval.embedder_model import (
    EmbedderTokenizer,
    bundled_embedder,
    embedding_text,
)
from orchestrator.retrieval.lexical_index import LexicalIndex
from orchestrator.retrieval.retriever import fuse

COLLECTION = "evaluation"
CANDIDATES = 50
DEPTH = 10_000
RANKS = (1, 5, 10)
WAYS = ("dense, no prefix", "dense", "bm25", "fused, no prefix", "fused")
BEST = "fused"


@dataclass(frozen=True, slots=True)
class Cut:
    """How pages are cut into chunks, in the embedder's tokens."""

    max_tokens: int = 150
    overlap_tokens: int = 20
    min_tokens: int = 30
    keep_running: bool = False


ABLATIONS: dict[str, dict[str, Any]] = {
    "running headers and footers kept": {"keep_running": True},
    "no overlap": {"overlap_tokens": 0},
    "scraps of a page left alone": {"min_tokens": 0},
    "chunks of 75 tokens": {"max_tokens": 75},
    "chunks of 250 tokens": {"max_tokens": 250},
}
"""What changes of the cut; the ways of searching are compared in the full configuration."""


@dataclass(frozen=True, slots=True)
class Asked:
    """
    A question, its vector, and the pages that hold its answer.

    Attributes:
        groups: What it is counted under: "all", its domain, its type.
    """

    text: str
    groups: tuple[str, ...]
    document: DocumentId
    gold: frozenset[tuple[DocumentId, int]]
    vector: np.ndarray[tuple[int], np.dtype[np.float32]]


class Corpus:
    """A folder of PDFs, searchable with and without the contextual prefix."""

    def __init__(self, *, folder: Path, embedder: Embedder, model: Path, cut: Cut) -> None:
        self.store = DocumentStore(path=folder / "documents.sqlite")
        self.store.open()
        self.lexical = LexicalIndex(database=self.store.database)
        self.indexes = CollectionIndexes(
            folder=folder / "indexes",
            store=self.store,
            dimension=embedder.dimension,
            wait_s=600.0,
        )
        self.pages = 0
        self.chunks = 0
        self.embedding_s = 0.0
        self._embedder = embedder
        self._plain: list[tuple[ChunkId, np.ndarray[Any, Any]]] = []
        self._page_of: dict[ChunkId, tuple[DocumentId, int]] = {}
        self._chunker = Chunker(
            tokenizer=EmbedderTokenizer(model),
            max_tokens=cut.max_tokens,
            overlap_tokens=cut.overlap_tokens,
            min_tokens=cut.min_tokens,
            keep_running=cut.keep_running,
        )

    async def add(self, path: Path, sandbox: ParserSandbox) -> None:
        """Read, cut, embed (twice) and publish one PDF; one that cannot be read is left out."""
        try:
            info = await sandbox.inspect(path)
            pages = [page async for page in sandbox.pages(path, total=info.pages)]
        except DocumentError as exc:
            print(f"left out: {path.name}: {exc}")
            return
        chunks = list(self._chunker.chunk(pages))
        started = time.monotonic()
        rows = await self._embedder.embed_passages([embedding_text(path.name, c) for c in chunks])
        self.embedding_s += time.monotonic() - started
        plain = await self._embedder.embed_passages([chunk.text for chunk in chunks])
        ids = self._publish(path, pages, chunks, rows)
        self._plain += zip(ids, plain, strict=True)
        self.pages += len(pages)
        self.chunks += len(chunks)
        print(f"read: {path.name}: {len(pages)} pages, {len(chunks)} chunks")

    def _publish(
        self, path: Path, pages: Sequence[Page], chunks: Sequence[Chunk], rows: Embeddings
    ) -> list[ChunkId]:
        document = Document(
            id=DocumentId(path.name),
            collection=COLLECTION,
            filename=path.name,
            sha256=path.name,
            size_bytes=path.stat().st_size,
            status=DocumentStatus.QUEUED,
            created_at=0.0,
        )
        self.store.add(document)
        stored = [StoredChunk(c, row, c.num_tokens) for c, row in zip(chunks, rows, strict=True)]
        change = self.store.publish(document.id, pages=pages, chunks=stored, warning=None)
        ids = list(change.added)
        self._page_of |= {i: (document.id, c.page) for i, c in zip(ids, chunks, strict=True)}
        return ids

    def finish(self) -> None:
        """Make the vectors without prefix searchable; call it once, after the last PDF."""
        ids = np.array([chunk_id for chunk_id, _ in self._plain], dtype=np.int64)
        self.indexes.search(COLLECTION, self._plain[0][1], 1)
        self.plain = (ids, np.stack([row for _, row in self._plain]))

    def rankings(self, asked: Asked, *, within: bool) -> dict[str, list[tuple[DocumentId, int]]]:
        """The distinct pages that each way of searching finds, best first."""
        only = [asked.document] if within else []
        allowed = self.store.chunk_ids(collection=COLLECTION, document_ids=only)
        dense, _ = self.indexes.search(COLLECTION, asked.vector, DEPTH, allowed=allowed)
        ids, rows = self.plain
        order = np.argsort(-(rows @ asked.vector), kind="stable")
        plain = [ChunkId(int(i)) for i in ids[order][np.isin(ids[order], allowed)]]
        titled = [ChunkId(int(i)) for i in dense]
        hits = self.lexical.search(asked.text, collection=COLLECTION, document_ids=only, k=DEPTH)
        worded = [chunk_id for chunk_id, _ in hits]
        ways = {
            "dense, no prefix": plain,
            "dense": titled,
            "bm25": worded,
            "fused, no prefix": fuse([plain[:CANDIDATES], worded[:CANDIDATES]]),
            "fused": fuse([titled[:CANDIDATES], worded[:CANDIDATES]]),
        }
        return {way: self._pages(chunk_ids) for way, chunk_ids in ways.items()}

    def _pages(self, chunk_ids: Iterable[ChunkId]) -> list[tuple[DocumentId, int]]:
        return list(dict.fromkeys(self._page_of[chunk_id] for chunk_id in chunk_ids))


def rank_of(
    gold: frozenset[tuple[DocumentId, int]], pages: Sequence[tuple[DocumentId, int]]
) -> int:
    """The place of the first gold page, from 1; 0 if there is none."""
    return next((rank for rank, page in enumerate(pages, start=1) if page in gold), 0)


def figures(ranks: Sequence[int]) -> dict[str, float]:
    """The share of questions with a gold page in the first 1, 5 and 10, and the MRR."""
    found = np.array(ranks)
    hits = {f"@{k}": float(np.mean((found > 0) & (found <= k))) for k in RANKS}
    reciprocal = np.divide(1.0, found, out=np.zeros(len(found)), where=found > 0)
    return hits | {"mrr": float(reciprocal.mean())}


def read_questions(path: Path, *, without_answer: bool = False) -> list[dict[str, Any]]:
    """The questions whose answer stands in the text of a PDF; with those that have none, if asked."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        row
        for row in rows
        if row.get("text_gold", True) or (without_answer and row.get("answerable") is False)
    ]


async def ask(questions: Iterable[dict[str, Any]], embedder: Embedder) -> list[Asked]:
    """The questions with their vectors."""
    asked = []
    for row in questions:
        document = DocumentId(row["pdf"])
        numbers = [*row["evidence_pages"], *(row.get("alt_pages") or ())]
        asked.append(
            Asked(
                text=row["question"],
                groups=(
                    "all",
                    f"domain {row.get('domain') or 'unknown'}",
                    f"type {row.get('answer_type') or 'unknown'}",
                ),
                document=document,
                gold=frozenset((document, number) for number in numbers),
                vector=await embedder.embed_query(row["question"]),
            )
        )
    return asked


def measure(corpus: Corpus, questions: Sequence[Asked]) -> list[dict[str, Any]]:
    """One row per scope, group of questions and way of searching; group "all" first."""
    rows = []
    for within in (False, True):
        ranks: dict[tuple[str, str], list[int]] = {}
        for asked in questions:
            for way, pages in corpus.rankings(asked, within=within).items():
                rank = rank_of(asked.gold, pages)
                for group in asked.groups:
                    ranks.setdefault((group, way), []).append(rank)
        scope = "within its PDF" if within else "across all PDFs"
        rows += [
            {"scope": scope, "group": group, "way": way, "n": len(ranks[group, way])}
            | figures(ranks[group, way])
            for group in sorted({group for group, _ in ranks})
            for way in WAYS
        ]
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text, in columns."""
    lines = [f"{'scope':16} {'group':24} {'way':17} {'n':>4}    @1    @5   @10   mrr"]
    for row in rows:
        numbers = " ".join(f"{row[key]:5.3f}" for key in ("@1", "@5", "@10", "mrr"))
        lines.append(f"{row['scope']:16} {row['group']:24} {row['way']:17} {row['n']:4} {numbers}")
    return "\n".join(lines)


def ablation_table(reports: dict[str, dict[str, Any]]) -> str:
    """What each ingredient is worth: a gold page in the first 5, and the MRR, without it."""
    full = next(iter(reports.values()))
    lines = [f"{'':34} {'chunks':>6}  across @5   mrr  within @5   mrr"]
    named = {
        "everything": (full, BEST),
        "no file name and heading embedded": (full, "fused, no prefix"),
        "by meaning alone": (full, "dense"),
        "by words alone": (full, "bm25"),
    } | {name: (report, BEST) for name, report in list(reports.items())[1:]}
    for name, (report, way) in named.items():
        across, within = (
            next(
                r
                for r in report["rows"]
                if (r["scope"], r["group"], r["way"]) == (scope, "all", way)
            )
            for scope in ("across all PDFs", "within its PDF")
        )
        lines.append(
            f"{name:34} {report['chunks']:6}      {across['@5']:5.3f} {across['mrr']:5.3f}"
            f"      {within['@5']:5.3f} {within['mrr']:5.3f}"
        )
    return "\n".join(lines)


async def evaluate(
    paths: Sequence[Path], questions: Sequence[dict[str, Any]], model: Path, cut: Cut
) -> dict[str, Any]:
    """
    The whole measurement.

    Returns:
        `rows` as in the table, and what was read: `pages`, `chunks`, `embedding_s`.
    """
    names = {path.name for path in paths}
    embedder = Embedder(model=model, threads=os.cpu_count() or 1)
    sandbox = ParserSandbox(limits=SandboxLimits(), workers=1)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            await embedder.start()
            await sandbox.start()
            corpus = Corpus(folder=Path(scratch), embedder=embedder, model=model, cut=cut)
            for path in paths:
                await corpus.add(path, sandbox)
            corpus.finish()
            asked = await ask((row for row in questions if row["pdf"] in names), embedder)
            rows = measure(corpus, asked)
            corpus.store.close()
        finally:
            await sandbox.aclose()
            await embedder.aclose()
    return {
        "pages": corpus.pages,
        "chunks": corpus.chunks,
        "embedding_s": round(corpus.embedding_s, 1),
        "cut": asdict(cut),
        "rows": rows,
    }


def main() -> None:
    """Measure what the arguments name, print it, and write it down if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--pdfs", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--max-tokens", type=int, default=Cut().max_tokens)
    parser.add_argument("--overlap-tokens", type=int, default=Cut().overlap_tokens)
    parser.add_argument("--min-tokens", type=int, default=Cut().min_tokens)
    parser.add_argument("--ablate", action="store_true")
    options = parser.parse_args()
    full = Cut(options.max_tokens, options.overlap_tokens, options.min_tokens)
    cuts = {"everything": full}
    if options.ablate:
        cuts |= {name: replace(full, **change) for name, change in ABLATIONS.items()}
    model = options.model or bundled_embedder()
    paths, questions = sorted(options.pdfs.glob("*.pdf")), read_questions(options.questions)
    reports = {}
    for name, cut in cuts.items():
        reports[name] = report = asyncio.run(evaluate(paths, questions, model, cut))
        print(f"\n{name}: {cut}\n{table(report['rows'])}")
        print(
            f"{report['pages']} pages, {report['chunks']} chunks, "
            f"embedded in {report['embedding_s']} s"
        )
    if options.ablate:
        print(f"\n{ablation_table(reports)}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        about = {"commit": commit(), "machine": machine(), "model": model.name}
        options.json.write_text(json.dumps(about | {"configurations": reports}, indent=1))


if __name__ == "__main__":
    main()
