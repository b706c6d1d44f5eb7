"""
The service that Tidegate replaces, as it is usually written; `before_after` holds the two side by side.

    python -m loadtest.naive_service --port 0 --model .models/smollm2-135m-instruct

FastAPI around a global model that the first question loads, a global embedder, and a global FAISS
index with a global list of chunks beside it, in memory alone. What is missing is missing on purpose:
there is no lock, no limit, no queue, no deadline, and nothing is kept. Mend nothing here, or there is no
"before" any more. What it does, it does right: the answers are a real model's, over the passages found.
"""

import argparse
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from pydantic import BaseModel
from pypdf import PdfReader
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator.retrieval.embedder_model import bundled_embedder, embedding_dimension

TOP_K = 4
CHUNK_CHARS = 1000
OVERLAP_CHARS = 200
PROMPT = "Answer the question from the context.\n\nContext:\n{context}\n\nQuestion: {question}"

app = FastAPI()
options = argparse.Namespace(model="", max_new_tokens=0)
embedder: Any = None
tokenizer: Any = None
model: Any = None
index = faiss.IndexFlatIP(embedding_dimension(bundled_embedder()))
chunks: list[tuple[str, str]] = []
"""(filename, text), in the order of the index."""


class Question(BaseModel):
    """What is asked; whatever else a client sends is not looked at."""

    question: str


def load_model() -> None:
    """Load the model at the first question: any two that ask before it is there load two."""
    global tokenizer, model  # noqa: PLW0603 - the race between check and load is the point
    if model is None:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)


def embed(texts: Sequence[str]) -> Any:
    """(n, 384) float32, rows of unit length."""
    return np.asarray(embedder.encode(list(texts), normalize_embeddings=True), dtype=np.float32)


def split(text: str) -> list[str]:
    """Pieces of CHUNK_CHARS that overlap by OVERLAP_CHARS; none of blank text."""
    starts = range(0, len(text), CHUNK_CHARS - OVERLAP_CHARS) if text.strip() else ()
    return [text[start : start + CHUNK_CHARS] for start in starts]


@app.post("/upload")
def upload(file: UploadFile) -> dict[str, Any]:
    """Read, embed and index a PDF while its client waits."""
    text = "\n".join(page.extract_text() for page in PdfReader(file.file).pages)
    name, found = file.filename or "", split(text)
    index.add(embed(found))
    chunks.extend((name, chunk) for chunk in found)
    return {"filename": name, "chunks": len(found)}


@app.get("/documents")
def documents() -> dict[str, Any]:
    """What has been uploaded since the process started."""
    return {"documents": [{"filename": name} for name in dict.fromkeys(n for n, _ in chunks)]}


@app.post("/ask")
def ask(question: Question) -> dict[str, Any]:
    """An answer from the passages that are nearest."""
    _, ids = index.search(embed([question.question]), TOP_K)
    found = [chunks[i] for i in ids[0] if i >= 0]
    context = "\n\n".join(text for _, text in found)
    content = PROMPT.format(context=context, question=question.question)
    load_model()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**prompt, max_new_tokens=options.max_new_tokens, do_sample=False)
    answer = tokenizer.decode(output[0][prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return {"answer": answer, "sources": [name for name, _ in found]}


def main() -> int:
    """Serve until SIGTERM or SIGINT; gives the exit code."""
    global embedder  # noqa: PLW0603 - as it is usually written
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="of every answer")
    parser.parse_args(namespace=options)
    embedder = SentenceTransformer(str(bundled_embedder()), device="cpu")
    with socket.create_server((options.host, options.port)) as listener:
        host, port = listener.getsockname()[:2]
        print(f"listening on http://{host}:{port}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
