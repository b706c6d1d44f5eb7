"""A real cross-encoder, small and untrained, in a real orchestrator."""

import shutil
import signal
import time

import httpx2
import psutil
import pytest

from orchestrator.retrieval.embedder_model import bundled_embedder
from tests import pdfs
from tests.running import orchestrator

QUESTION = {"question": "Who keeps the gate at night?", "top_k": 5}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two layers of random weights, the same each time: an order that no search would give."""
    import torch  # noqa: PLC0415 - seconds, for these tests alone
    from transformers import BertConfig, BertForSequenceClassification  # noqa: PLC0415 - as above

    folder = tmp_path_factory.mktemp("cross-encoder")
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (bundled_embedder() / name).exists():
            shutil.copy(bundled_embedder() / name, folder)
    return folder


def search(url):
    response = httpx2.post(f"{url}/search", json=QUESTION, timeout=60, trust_env=False)
    assert response.is_success, response.text
    found = response.json()
    return [(p["page"], p["text"]) for p in found["passages"]], found.get("degraded")


def upload(url):
    httpx2.post(
        f"{url}/upload",
        params={"wait": "true"},
        files={"file": ("handbook.pdf", pdfs.handbook(), "application/pdf")},
        timeout=60,
        trust_env=False,
    ).raise_for_status()


def test_passages_are_read_a_second_time_and_found_without_it(tmp_path, fake_engine, model):
    """Another order with it; killed, the order of the search, told as L1; then it is back."""
    with orchestrator(tmp_path / "plain", fake_engine.url) as running:
        upload(running.url)
        found, degraded = search(running.url)
        assert degraded is None
    with orchestrator(
        tmp_path / "two",
        fake_engine.url,
        wait_for=["embedder", "reranker"],
        reranker_model=str(model),
    ) as running:
        upload(running.url)
        reranked, degraded = search(running.url)
        assert degraded is None
        assert reranked != found
        assert search(running.url)[0] == reranked
        ready = httpx2.get(f"{running.url}/readyz", trust_env=False).json()
        assert ready["dependencies"]["reranker"]["status"] == "ok"
        (child,) = [p for p in running.descendants() if "--cross-encoder" in p.cmdline()]
        psutil.Process(child.pid).send_signal(signal.SIGSTOP)
        without, degraded = search(running.url)
        assert without == found
        assert degraded["level"] == "L1"
        child.kill()
        until = time.monotonic() + 60
        while search(running.url)[1] is not None:
            assert time.monotonic() < until, "the reranker did not come back"
            time.sleep(0.5)
        assert search(running.url)[0] == reranked


def test_a_model_that_is_none_is_left_out(tmp_path, fake_engine):
    """A folder without a model: the service starts, and searches as without a reranker."""
    (tmp_path / "empty").mkdir()
    with orchestrator(
        tmp_path / "data", fake_engine.url, reranker_model=str(tmp_path / "empty")
    ) as running:
        upload(running.url)
        found, degraded = search(running.url)
        assert found
        assert degraded["level"] == "L1"
