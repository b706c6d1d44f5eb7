"""
Writes docs/configuration.md from the two programs' settings: what `make docs` runs.

A test compares the page with what this makes, so that the two cannot drift apart.
"""

from pathlib import Path

from pydantic_settings import BaseSettings

from model_server.settings import Settings as ModelServerSettings
from orchestrator.settings import Settings as OrchestratorSettings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration

Every setting is an environment variable; a value out of bounds, or a name that does not exist, is told at the start.
`make run` passes those that are set on to the two programs.
This page is generated (`make docs`); `tidegate config` shows the values in force.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([
        INTRODUCTION,
        "## orchestrator\n",
        _table(OrchestratorSettings),
        "## model_server\n",
        _table(ModelServerSettings),
    ])


def _table(settings: type[BaseSettings]) -> str:
    prefix = settings.model_config["env_prefix"]
    rows = [
        f"| `{prefix}{name.upper()}` | {_default(name, field.default)} | {field.description} |"
        for name, field in settings.model_fields.items()
    ]
    return "\n".join(["| variable | default | what it does |", "|---|---|---|", *rows, ""])


def _default(name: str, value: object) -> str:
    if name.endswith("_python"):
        return "this Python"
    shown = str(value)
    return "" if shown in {"None", "", "PydanticUndefined"} else f"`{shown}`"


if __name__ == "__main__":
    PAGE.write_text(page())
