"""The examples of the documentation that need a model, run as they stand there, with the real one."""

import pytest

from tests.examples import WITH_MODEL, Terminal, examples
from tests.running import orchestrator

from .conftest import MODEL_FOLDER


@pytest.fixture(scope="module")
def brief(model_server, vllm_url, tmp_path_factory):
    """An orchestrator with nothing in it, whose answers are short where an example does not say."""
    data_dir = tmp_path_factory.mktemp("examples")
    with orchestrator(
        data_dir,
        vllm_url,
        wait_for=("engine", "embedder"),
        tokenizer=str(MODEL_FOLDER),
        control_url=model_server.url,
        max_concurrent_requests="36",
        max_tokens="32",
    ) as running:
        # Where `make run` has it.
        (data_dir / "logs").mkdir()
        (data_dir / "logs" / running.log.name).hardlink_to(running.log)
        yield running


@pytest.mark.parametrize("page", WITH_MODEL)
def test_examples_do_what_the_page_says(page, brief, model_server, vllm_url, tmp_path):
    """Each block ends well, one after the other, and prints what is shown below it."""
    said = {
        "http://127.0.0.1:8080": brief.url,
        "http://127.0.0.1:8081": model_server.url,
        "http://127.0.0.1:8000": vllm_url,
    }
    terminal = Terminal(tmp_path / "home", said, data_dir=brief.log.parent)
    for example in examples(page):
        terminal.run(example)
