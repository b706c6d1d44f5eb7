"""
The embedder's own process: texts in on stdin, unit vectors out on stdout.

    python -m orchestrator.retrieval.embedder_process --model DIR --dtype auto --threads 2

Torch lives here and nowhere else, so neither its memory nor its hold on the GIL touches the event
loop. The wire, both ways, is a 4-byte little-endian length and that many bytes of JSON; a reply to
texts is followed by its vectors, row after row of little-endian float32.

    up    {"dimension": 384, "max_tokens": 256, "dtype": "bfloat16"}    once, when the model is loaded
    down  {"texts": ["…", …], "threads": 2}
    up    {"rows": 2, "dimension": 384} + 2 * 384 * 4 bytes             or {"error": "RuntimeError"}

`threads` is what this batch may use; without it the process's own number holds. With `--parallel 2` a
batch is computed as two, side by side, each by its share of the threads: matrices this small gain
less from a second thread than it costs to wait for it, above all when others want the cores.

With `--cross-encoder` the model is one that scores pairs: each text is a JSON list of a question and a
passage, and its row is one number, higher for passages that answer the question better.

The end of stdin ends the process; so does the death of its parent.
"""

import argparse
import ctypes
import faulthandler
import json
import os
import select
import signal
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from orchestrator.domain import Embeddings
from orchestrator.telemetry.heap import keep_freed_memory, trim_heap

if TYPE_CHECKING:
    import torch

_LENGTH = struct.Struct("<I")
_MAX_HEADER_BYTES = 64 * 1024 * 1024
_PR_SET_PDEATHSIG = 1

PAD_TOKENS = 16
"""Batches are padded to a multiple of this: torch and oneDNN keep about 1 MB for each shape they met,
without a bound; so there are 16 lengths instead of 256."""

IDLE_S = 1.0
"""Seconds without a request after which freed memory goes back to the system."""


def write_frame(stream: BinaryIO, header: dict[str, Any], body: bytes = b"") -> None:
    """Send one header, and the bytes that belong to it."""
    encoded = json.dumps(header, ensure_ascii=False).encode()
    stream.write(_LENGTH.pack(len(encoded)) + encoded + body)
    stream.flush()


def read_header(stream: BinaryIO) -> dict[str, Any] | None:
    """
    The next header, or None at the end of the stream.

    Raises:
        ValueError: If what arrives is no header of this wire.
    """
    prefix = stream.read(_LENGTH.size)
    if len(prefix) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(prefix)
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes is over the {_MAX_HEADER_BYTES} of this wire")
    header = json.loads(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("a header is a JSON object")  # noqa: TRY004 - the wire is wrong, not our types
    return header


def cpu_has_bfloat16(cpuinfo: str) -> bool:
    """
    Whether the CPU multiplies bfloat16 in hardware, from the text of /proc/cpuinfo.

    Without avx512_bf16 or AMX, bfloat16 is emulated and slower than float32; with them it is 2.5
    to 4 times faster for this kind of model.
    """
    for line in cpuinfo.splitlines():
        if line.startswith("flags"):
            return not {"avx512_bf16", "amx_bf16"}.isdisjoint(line.split())
    return False


def cap_gpu_memory(torch: Any, device: str, num_bytes: int) -> None:
    """
    Let torch allocate so many bytes on a GPU and no more: beyond them it raises OutOfMemoryError.

    Before anything is allocated there: what is taken already is not given back.

    Args:
        torch: The module.
        device: "cuda" or "cuda:<number>".
        num_bytes: The cap; the CUDA context, which torch does not allocate, comes on top.

    Raises:
        SystemExit: If torch cannot compute there; with what to do about it.
    """
    index = int(device.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise SystemExit(
            f"ORCHESTRATOR_EMBEDDER_DEVICE={device}, but torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} GPUs: set it to cpu, install the GPU's build "
            "(make setup DEVICE=gpu), or look at CUDA_VISIBLE_DEVICES."
        )
    total = torch.cuda.get_device_properties(index).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, num_bytes / total), index)


class Model:
    """
    A sentence-transformers model that gives unit vectors.

    Args:
        folder: Where it is.
        dtype: "float32", "bfloat16", or "auto": whichever is faster here.
        threads: CPU threads.
        parallel: Parts that a batch is computed in, side by side.
        device: In torch's words.
        gpu_memory_bytes: The most that it may allocate on a GPU.

    Attributes:
        dimension: Length of a vector.
        max_tokens: Longest input, special tokens included; the model cuts what is longer.
        dtype: The arithmetic it runs in.
    """

    def __init__(
        self,
        *,
        folder: Path,
        dtype: str,
        threads: int,
        device: str,
        gpu_memory_bytes: int,
        parallel: int = 1,
    ) -> None:
        # Imported here so that stdout is out of the libraries' reach before they load.
        import torch  # noqa: PLC0415 - see above
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - see above

        self._parallel = parallel
        # Torch keeps the number of threads for each thread that asks.
        set_threads = partial(torch.set_num_threads, max(1, threads // parallel))
        set_threads()
        self._parts = ThreadPoolExecutor(parallel, initializer=set_threads)
        if device.startswith("cuda"):
            cap_gpu_memory(torch, device, gpu_memory_bytes)
        self._torch = torch
        self._model = SentenceTransformer(str(folder), device=device)
        self._model.to(self._precision(dtype, device))
        self._model.eval()
        dimension = self._model.get_embedding_dimension()
        if dimension is None:
            raise ValueError(f"{folder} does not say how long its vectors are")
        self.dimension: int = dimension
        self.max_tokens: int = self._model.get_max_seq_length() or 512
        self.dtype = str(self._model.dtype).removeprefix("torch.")

    def _precision(self, dtype: str, device: str) -> "torch.dtype":
        if dtype != "auto":
            return getattr(self._torch, dtype)  # type: ignore[no-any-return] # by name
        if device.startswith("cuda"):
            fast = self._torch.cuda.is_bf16_supported()
        else:
            cpuinfo = Path("/proc/cpuinfo")
            fast = cpuinfo.exists() and cpu_has_bfloat16(cpuinfo.read_text(encoding="utf-8"))
        return self._torch.bfloat16 if fast else self._torch.float32

    def embed(self, texts: list[str], *, threads: int | None = None) -> Embeddings:
        """
        One row per text, in the order of the texts; a batch that does not fit the GPU is halved.

        Args:
            texts: What to embed.
            threads: How many may be used; None means all.

        Returns:
            (n, d) float32, rows of unit length.
        """
        parts = min(self._parallel, threads or self._parallel, len(texts))
        if parts <= 1:
            return self._fitting(texts)
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        # Texts come the longest first: dealt out like cards, all parts take as long.
        dealt = [texts[part::parts] for part in range(parts)]
        for part, rows in enumerate(self._parts.map(self._fitting, dealt)):
            vectors[part::parts] = rows
        return vectors

    def _fitting(self, texts: list[str]) -> Embeddings:
        try:
            return self._embed(texts)
        except self._torch.OutOfMemoryError:
            if len(texts) == 1:
                raise
        self._torch.cuda.empty_cache()
        middle = len(texts) // 2
        return np.concatenate([self._fitting(texts[:middle]), self._fitting(texts[middle:])])

    def warm_up(self, max_batch: int) -> None:
        """Compute the largest batch once: what it takes is taken now, and not with the first upload."""
        # Alone first: the tokenizer keeps how it pads from the first call, and must not be told so by
        # two threads at a time.
        self._fitting(["warm up"])
        self.embed(["warm up " * self.max_tokens] * max_batch)

    def _embed(self, texts: list[str]) -> Embeddings:
        with self._torch.inference_mode():
            rows = self._model.encode(
                texts,
                batch_size=len(texts),
                convert_to_tensor=True,
                show_progress_bar=False,
                processing_kwargs={"text": {"pad_to_multiple_of": PAD_TOKENS}},
            )
            # Unit length in float32: a bfloat16 norm is only right to two digits.
            unit = self._torch.nn.functional.normalize(rows.float(), dim=1)
        vectors: Embeddings = np.ascontiguousarray(unit.cpu().numpy(), dtype="<f4")
        return vectors


class PairModel:
    """
    A sentence-transformers cross-encoder on the CPU, in the shape of `Model`: a row is one score.

    Attributes:
        dimension: 1.
        max_tokens: Longest pair, special tokens included; the model cuts what is longer.
        dtype: The arithmetic it runs in.
    """

    dimension = 1

    def __init__(self, *, folder: Path, threads: int) -> None:
        import torch  # noqa: PLC0415 - as in Model
        from sentence_transformers import CrossEncoder  # noqa: PLC0415 - as in Model

        torch.set_num_threads(threads)
        self._torch = torch
        self._model = CrossEncoder(str(folder), device="cpu", num_labels=1)
        self._model.eval()
        self.max_tokens: int = self._model.max_length or 512
        self.dtype = "float32"

    def embed(self, texts: list[str], *, threads: int | None = None) -> Embeddings:
        """
        One score a pair, in the order of the pairs.

        Args:
            texts: The pairs, as JSON.
            threads: Without a meaning here: all are used.

        Returns:
            (n, 1) float32.
        """
        del threads
        pairs = [tuple(json.loads(text)) for text in texts]
        with self._torch.inference_mode():
            scores = self._model.predict(pairs, batch_size=len(pairs), show_progress_bar=False)
        rows: Embeddings = np.ascontiguousarray(scores, dtype="<f4").reshape(len(texts), 1)
        return rows

    def warm_up(self, max_batch: int) -> None:
        """Compute the largest batch once."""
        self.embed([json.dumps(["warm up", "warm up " * self.max_tokens])] * max_batch)


def serve(
    model: Model | PairModel,
    requests: BinaryIO,
    replies: BinaryIO,
    *,
    before_read: Callable[[], None] = lambda: None,
) -> None:
    """Answer requests one after the other until there are no more."""
    hello = {"dimension": model.dimension, "max_tokens": model.max_tokens, "dtype": model.dtype}
    write_frame(replies, hello)
    while True:
        before_read()
        if (request := read_header(requests)) is None:
            return
        try:
            vectors = model.embed(request["texts"], threads=request.get("threads"))
        except Exception as exc:  # noqa: BLE001 - one bad batch must not cost the process
            # The name only: a message may quote the text, and texts never reach a log.
            write_frame(replies, {"error": type(exc).__name__})
            continue
        header = {"rows": len(vectors), "dimension": model.dimension}
        write_frame(replies, header, vectors.tobytes())


def give_back_when_idle(descriptor: int) -> None:
    """
    Wait for the next request; if none comes for `IDLE_S`, return freed memory to the system first.

    glibc keeps what a large batch took: 300 MB of it after a run over mixed documents, otherwise.
    """
    if not select.select([descriptor], [], [], IDLE_S)[0]:
        trim_heap()


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent is gone, where the kernel can."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Load the model that the arguments name, then serve."""
    die_with_parent()
    faulthandler.register(signal.SIGUSR1)
    keep_freed_memory()
    # oneDNN keeps compiled kernels, 1,024 by default; measured, 64 are no slower and 100 MB less.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    # Whatever a library prints goes to stderr: the wire has stdout for itself.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--gpu-memory-bytes", type=int, default=1 << 30)
    parser.add_argument("--cross-encoder", action="store_true")
    options = parser.parse_args()
    model: Model | PairModel
    if options.cross_encoder:
        model = PairModel(folder=options.model, threads=options.threads)
    else:
        model = Model(
            folder=options.model,
            dtype=options.dtype,
            threads=options.threads,
            parallel=options.parallel,
            device=options.device,
            gpu_memory_bytes=options.gpu_memory_bytes,
        )
    model.warm_up(options.max_batch)
    # The parent sends one request at a time, so nothing waits in our buffer while we look at the
    # descriptor.
    requests = sys.stdin.buffer
    serve(model, requests, replies, before_read=lambda: give_back_when_idle(requests.fileno()))


if __name__ == "__main__":
    main()
