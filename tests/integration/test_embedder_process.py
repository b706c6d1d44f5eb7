"""The embedder with its real model, in its real process."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from orchestrator.errors import EmbedderUnavailable
from orchestrator.retrieval.embedder import Embedder
from orchestrator.retrieval.embedder_model import bundled_embedder

pytestmark = pytest.mark.timeout(180)

TEXTS = [
    "The tide gate closes two hours before high water.",
    "Revenue grew by 12 % in the fiscal year 2022.",
    "word " * 400,
    "é",
    "",
]

_REFERENCE = """
import sys
import numpy as np
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1], device="cpu")
np.save(sys.argv[2], model.encode(sys.argv[3:], show_progress_bar=False))
"""

_PARENT = """
import asyncio, sys
from orchestrator.retrieval import embedder, retriever
from orchestrator.retrieval.embedder_model import EmbedderTokenizer, bundled_embedder

EmbedderTokenizer(bundled_embedder()).count("some text")
print(sorted({"torch", "sentence_transformers", "transformers"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def anyio_backend():
    """One loop for the module, because loading the model takes seconds."""
    return "asyncio"


@pytest.fixture(scope="module")
async def embedder():
    embedder = Embedder(model=bundled_embedder(), threads=2, max_batch=2)
    await embedder.start()
    yield embedder
    await embedder.aclose()


async def test_vectors_are_those_of_sentence_transformers(embedder, tmp_path):
    """Same direction as the library's float32 vectors, of unit length, in order."""
    file = tmp_path / "reference.npy"
    program = [sys.executable, "-c", _REFERENCE, str(bundled_embedder()), str(file), *TEXTS]
    await asyncio.to_thread(subprocess.run, program, check=True, stderr=subprocess.DEVNULL)
    reference = np.load(file)
    vectors = await embedder.embed_passages(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    # bfloat16 keeps two digits of each number; what counts is the angle.
    assert np.einsum("nd,nd->n", vectors, reference).min() > 0.998
    assert embedder.max_tokens == 256
    assert embedder.dtype in {"float32", "bfloat16"}


async def test_a_killed_child_is_replaced_and_works(embedder):
    """Kill -9 in the middle of a batch: ingestion goes through, a question is told."""
    restarts = embedder.restarts
    (child,) = [
        process
        for process in psutil.Process().children()
        if "orchestrator.retrieval.embedder_process" in process.cmdline()
    ]
    passages = asyncio.create_task(embedder.embed_passages(["some words " * 100] * 8))
    await asyncio.sleep(0)
    question = asyncio.create_task(embedder.embed_query("what?"))
    while embedder.waiting != (1, 0):
        await asyncio.sleep(0)
    os.kill(child.pid, signal.SIGKILL)
    results = await asyncio.gather(passages, question, return_exceptions=True)
    assert isinstance(results[0], np.ndarray)
    assert results[0].shape == (8, 384)
    assert isinstance(results[1], np.ndarray | EmbedderUnavailable)
    assert embedder.restarts == restarts + 1
    assert (await embedder.embed_query("what?")).shape == (384,)


async def test_a_question_does_not_wait_for_an_upload(embedder):
    """With hundreds of chunks under way a question takes a small part of their time."""
    started = time.monotonic()
    upload = asyncio.create_task(embedder.embed_passages(["some words " * 60] * 80))
    await asyncio.sleep(0)
    await embedder.embed_query("what?")
    question_s = time.monotonic() - started
    assert not upload.done()
    await upload
    assert question_s < (time.monotonic() - started) / 3


async def test_the_child_ends_with_its_parent(tmp_path):
    """When the parent is killed no embedder stays behind."""
    program = (
        "import asyncio\n"
        "from orchestrator.retrieval.embedder import Embedder\n"
        "from orchestrator.retrieval.embedder_model import bundled_embedder\n"
        "async def main():\n"
        "    embedder = Embedder(model=bundled_embedder(), threads=1)\n"
        "    await embedder.start()\n"
        "    print(embedder._child.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    child = psutil.Process(int(await parent.stdout.readline()))
    parent.kill()
    await parent.wait()
    await asyncio.to_thread(psutil.wait_procs, [child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_the_parent_never_loads_torch():
    """All that the orchestrator imports of this room leaves torch alone."""
    program = [sys.executable, "-c", _PARENT]
    result = subprocess.run(program, check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
