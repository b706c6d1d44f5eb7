"""
The program that reads PDFs: one JSON request a line on stdin, JSON replies on stdout.

    python -m orchestrator.documents.parser_process --memory-bytes 1073741824 --niceness 5

    up    {"ready": true, "confined": ["files", "core", "parent", "network", "memory"]}   once
    down  {"op": "inspect", "path": "…", "max_pages": 5000, "cpu_s": 10}
    up    {"info": {"pages": 12}}
    down  {"op": "pages", "path": "…", "first": 1, "last": 16, "max_pages": 5000,
           "max_chars_per_page": 400000, "cpu_s": 10, "fast": true}
    up    {"page": {"number": 1, "text": "…", "flaw": null}}    one a page
    down  {"op": "boxes", "path": "…", "page": 3, "text": "…", "near": 0.4, "max_pages": 5000, "cpu_s": 10}
    up    {"boxes": [[0.1, 0.2, 0.9, 0.22]]}                    shares of the page, from the top left
    down  {"op": "ocr", "path": "…", "page": 3, "max_pages": 5000, "max_chars": 400000, "cpu_s": 60}
    up    {"text": "…"}                                         only with --ocr
    up    {"done": true, "resident_bytes": 61000000}            ends every request
    up    {"error": {"code": "damaged_document", "message": "…"}}    instead of that

The end of stdin ends the process; so does the death of its parent, too much CPU time (SIGXCPU), or
too much memory (an error, then exit code 3: the heap is not worth keeping).
"""

import argparse
import gc
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from orchestrator.documents.confinement import allow_cpu, confine, resident_bytes
from orchestrator.documents.ocr import PageReader
from orchestrator.documents.pdf import OpenPdf
from orchestrator.documents.text_cleaning import clean
from orchestrator.domain import FlawedPage, Page
from orchestrator.errors import OrchestratorError, ParserOutOfMemory
from orchestrator.telemetry.heap import trim_heap

Reply: TypeAlias = dict[str, Any]

EXIT_OUT_OF_MEMORY = 3


class PdfServer:
    """
    Answers requests about one file after the other; the file of the last request stays open.

    Args:
        reader: Reads pictures of pages, if that is wanted of this process.
    """

    def __init__(self, reader: PageReader | None = None) -> None:
        self._reader = reader
        self._path: str | None = None
        self._pdf: OpenPdf | None = None

    def answer(self, request: dict[str, Any]) -> Iterator[Reply]:
        """
        The replies to a request, each as soon as it is known.

        Raises:
            MemoryError: If the file needs more than the process may have.
        """
        cpu_s = float(request["cpu_s"])
        allow_cpu(cpu_s)
        try:
            if request["op"] == "inspect":
                yield {"info": {"pages": self._open(request, again=True).info.pages}}
            elif request["op"] == "boxes":
                pdf = self._open(request)
                near = float(request["near"])
                yield {"boxes": pdf.boxes(int(request["page"]), request["text"], near=near)}
            elif request["op"] == "ocr":
                yield {"text": self._recognised(request)}
            else:
                yield from self._pages(request, cpu_s=cpu_s)
        except OrchestratorError as exc:
            yield {"error": {"code": exc.code, "message": exc.message}}
        else:
            yield {"done": True, "resident_bytes": resident_bytes()}
        finally:
            # After the last reply: nobody waits for it. A reader goes on with its next window.
            if request["op"] in {"inspect", "boxes"} or self._is_last(request):
                self._close()

    def _recognised(self, request: dict[str, Any]) -> str:
        image = self._open(request).picture(int(request["page"]))
        if self._reader is None or image is None:
            return ""
        return clean(self._reader.text(image))[: int(request["max_chars"])]

    def _pages(self, request: dict[str, Any], *, cpu_s: float) -> Iterator[Reply]:
        pages = self._open(request).read_pages(
            first=int(request["first"]),
            last=int(request["last"]),
            max_chars_per_page=int(request["max_chars_per_page"]),
            fast=bool(request["fast"]),
        )
        for page in pages:
            yield {"page": _as_json(page)}
            allow_cpu(cpu_s)

    def _is_last(self, request: dict[str, Any]) -> bool:
        last = int(request.get("last", request.get("page", 0)))
        return self._pdf is not None and last >= self._pdf.info.pages

    def _open(self, request: dict[str, Any], *, again: bool = False) -> OpenPdf:
        path = str(request["path"])
        if again or self._pdf is None or self._path != path:
            self._close()
            self._pdf = OpenPdf.open(Path(path), max_pages=int(request["max_pages"]))
            self._path = path
        return self._pdf

    def _close(self) -> None:
        if self._pdf is not None:
            self._pdf.close()
            self._path = self._pdf = None
            gc.collect()  # pypdf's objects refer to each other
            trim_heap()  # it may have held a hundred megabytes


def _as_json(page: Page) -> Reply:
    flaw = page.reason if isinstance(page, FlawedPage) else None
    return {"number": page.number, "text": page.text, "flaw": flaw}


def serve(requests: BinaryIO, replies: BinaryIO, reader: PageReader | None = None) -> int:
    """Answer requests until there are no more; gives the exit code."""
    server = PdfServer(reader)
    for line in requests:
        try:
            for reply in server.answer(json.loads(line)):
                _write(replies, reply)
        except MemoryError:
            del server
            message = "Reading the PDF took more memory than the limit."
            _write(replies, {"error": {"code": ParserOutOfMemory.code, "message": message}})
            return EXIT_OUT_OF_MEMORY
    return 0


def _write(stream: BinaryIO, reply: Reply) -> None:
    stream.write(json.dumps(reply, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    stream.flush()


def _take_stdout() -> BinaryIO:
    """The real stdout, out of reach of whatever prints: the wire carries replies only."""
    replies = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return replies


def _muted() -> None:
    # pypdf reports every oddity of a file; document text must not reach a log.
    logging.disable()
    warnings.simplefilter("ignore")


def main(argv: list[str]) -> int:
    """Confine this process, then serve; gives the exit code."""
    parser = argparse.ArgumentParser(prog="parser_process", description="Reads PDFs over a pipe.")
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--niceness", type=int, default=0)
    parser.add_argument("--ocr", action="store_true", help="read pictures, too")
    options = parser.parse_args(argv)
    replies = _take_stdout()
    _muted()
    confined = confine(memory_bytes=options.memory_bytes, niceness=options.niceness)
    # Only now: what it loads is confined like what it reads.
    reader = PageReader() if options.ocr else None
    _write(replies, {"ready": True, "confined": confined})
    return serve(sys.stdin.buffer, replies, reader)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
