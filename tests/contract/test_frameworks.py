"""Frameworks that people have their code in, with their own clients, in their own environment."""

import json
import os
import subprocess

import pytest

from .conftest import MODEL, ROOT

PYTHON = ROOT / ".venv-frameworks" / "bin" / "python"
FRAMEWORKS = ["langchain", "haystack"]


@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-frameworks: run `make test`")
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_works_with_another_base_url_alone(stack, framework):
    """Whole answers and streams say the same; vectors are those of the search."""
    script = ROOT / "tests" / "frameworks" / f"{framework}_client.py"
    quiet = {"HAYSTACK_TELEMETRY_ENABLED": "False", "LANGSMITH_TRACING": "false"}
    ended = subprocess.run(
        [str(PYTHON), str(script), f"{stack.url}/v1", MODEL, "all-MiniLM-L6-v2"],
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["whole"]
    assert found["streamed"] == found["whole"]
    assert found["pieces"] > 1
    assert found.get("awaited", found["whole"]) == found["whole"]
    assert found["dimension"] == 384
