"""The examples of the documentation that need a model, run as they stand there, with the real one."""

import pytest

from tests.examples import WITH_MODEL, Terminal, examples


@pytest.mark.parametrize("page", WITH_MODEL)
def test_examples_do_what_the_page_says(page, stack, model_server, vllm_url, tmp_path):
    """Each block ends well, one after the other, and prints what is shown below it."""
    said = {
        "http://127.0.0.1:8080": stack.url,
        "http://127.0.0.1:8081": model_server.url,
        "http://127.0.0.1:8000": vllm_url,
    }
    logs = stack.log.parent / "logs"
    logs.mkdir(exist_ok=True)
    (logs / stack.log.name).unlink(missing_ok=True)
    (logs / stack.log.name).hardlink_to(stack.log)
    terminal = Terminal(tmp_path / "home", said, data_dir=stack.log.parent)
    for example in examples(page):
        terminal.run(example)
