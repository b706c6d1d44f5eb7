"""
How many of the engine's tokens a text takes.

With the engine's own tokenizer and chat template the count is exact. Without them it is estimated
on the safe side, and says so.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, Protocol

import jinja2
from huggingface_hub import snapshot_download
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from orchestrator.domain import Message
from orchestrator.errors import InvalidParameter

TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "*.jinja"]


class TokenizerError(Exception):
    """The engine's tokenizer cannot be loaded; the message says what is missing."""


class TokenCounter(Protocol):
    """
    Counts the engine's tokens.

    Attributes:
        exact: Whether the counts are the engine's own.
        fingerprint: Changes when the counts may.
        takes_system: Whether the chat template takes messages of the system role.
    """

    exact: bool
    fingerprint: str
    takes_system: bool

    def count(self, text: str) -> int:
        """Tokens of a text within a message, without special tokens."""

    def count_messages(self, messages: Sequence[Message]) -> int:
        """Tokens of the whole prompt, the chat template's own included."""


class EngineTokenizer:
    """
    The engine's tokenizer and chat template, loaded from its model folder.

    vLLM renders the template and encodes the result without adding special tokens; so do we.
    """

    exact = True

    def __init__(
        self, *, tokenizer: Tokenizer, chat_template: str, tokens: Mapping[str, str]
    ) -> None:
        self._tokenizer = tokenizer
        self._template = _environment().from_string(chat_template)
        self._special = dict(tokens)
        digest = hashlib.sha256(chat_template.encode())
        digest.update(tokenizer.to_str().encode())
        self.fingerprint = digest.hexdigest()[:16]
        self.takes_system = self._renders([Message("system", "x"), Message("user", "x")])

    @classmethod
    def load(cls, model: str) -> "EngineTokenizer":
        """
        The tokenizer of a model folder or Hugging Face id.

        Raises:
            TokenizerError: If there is no tokenizer.json or no chat template.
        """
        folder = _folder(model)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(f"{folder} has no tokenizer.json: name the engine's model folder")
        config = _json(folder / "tokenizer_config.json")
        template_file = folder / "chat_template.jinja"
        template = template_file.read_text() if template_file.is_file() else _template(config)
        if not template:
            raise TokenizerError(f"{folder} has no chat template: choose an instruct or chat model")
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        special = {
            name: value if isinstance(value, str) else value.get("content", "")
            for name, value in config.items()
            if name.endswith("_token") and isinstance(value, str | dict)
        }
        return cls(tokenizer=tokenizer, chat_template=template, tokens=special)

    def count(self, text: str) -> int:
        """Exact tokens of a text, without special tokens."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def count_messages(self, messages: Sequence[Message]) -> int:
        """
        Exact tokens of the prompt that the engine will see.

        Raises:
            InvalidParameter: If the chat template refuses the conversation, as many do when the
                turns of user and assistant do not alternate.
        """
        try:
            return self.count(self._render(messages))
        except jinja2.TemplateError as exc:
            raise InvalidParameter(
                f"The model's chat template refused the conversation: {exc}. "
                "Let the turns of user and assistant alternate.",
                param="history",
            ) from exc

    def _render(self, messages: Sequence[Message]) -> str:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return self._template.render(messages=turns, add_generation_prompt=True, **self._special)

    def _renders(self, messages: Sequence[Message]) -> bool:
        try:
            self._render(messages)
        except jinja2.TemplateError:
            return False
        return True


class EstimatedTokens:
    """
    Counts for an engine whose tokenizer is not at hand.

    One token for each 3 bytes of UTF-8: subword vocabularies average 3.5 to 4.5 bytes a token on
    prose, so this rather leaves a passage out than overruns the window.
    """

    exact = False
    fingerprint = "estimate-3-bytes"
    takes_system = True

    def count(self, text: str) -> int:
        """An estimate from above."""
        return len(text.encode("utf-8", "replace")) // 3 + 1

    def count_messages(self, messages: Sequence[Message]) -> int:
        """An estimate from above, with 8 tokens of template a turn."""
        return 16 + sum(self.count(m.content) + 8 for m in messages)


def _folder(model: str) -> Path:
    path = Path(model)
    if path.is_dir():
        return path
    try:
        return Path(snapshot_download(model, allow_patterns=TOKENIZER_FILES))
    except Exception as exc:
        raise TokenizerError(
            f"{model} is neither a folder nor a model that the hub gave us ({exc})"
        ) from exc


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    loaded = json.loads(path.read_text())
    return loaded if isinstance(loaded, dict) else {}


def _template(config: Mapping[str, Any]) -> str:
    template = config.get("chat_template", "")
    if isinstance(template, list):  # several named templates: the default one is meant for chat
        named = {entry["name"]: entry["template"] for entry in template}
        return str(named.get("default", ""))
    return str(template)


def _environment() -> ImmutableSandboxedEnvironment:
    """The environment that transformers renders chat templates in."""

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def today(pattern: str) -> str:
        return datetime.now(tz=UTC).strftime(pattern)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = today
    return environment
