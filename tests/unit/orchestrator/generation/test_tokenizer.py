"""How many of the engine's tokens a text takes."""

import json

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from orchestrator.domain import Message
from orchestrator.errors import InvalidParameter
from orchestrator.generation.prompt import SYSTEM, assemble
from orchestrator.generation.tokenizer import EngineTokenizer, EstimatedTokens, TokenizerError

TEMPLATE = (
    "{% for m in messages %}{{ bos_token }} {{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


@pytest.fixture
def folder(tmp_path):
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "<s>": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def configured(folder, **config):
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return EngineTokenizer.load(str(folder))


def test_counts_the_rendered_conversation(folder):
    """Template, roles and special tokens are counted as the engine sees them."""
    counter = configured(folder, chat_template=TEMPLATE, bos_token="BOS")
    assert counter.count("three small words") == 3
    assert counter.count_messages([Message("user", "three small words")]) == 6
    assert counter.exact


def test_a_template_may_stand_in_its_own_file(folder):
    """Newer models carry chat_template.jinja."""
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    counter = configured(folder, bos_token={"content": "BOS"})
    assert counter.count_messages([Message("user", "one")]) == 4


def test_another_template_has_another_fingerprint(folder):
    """Stored counts are made anew when the tokenizer or its template changes."""
    first = configured(folder, chat_template=TEMPLATE).fingerprint
    assert configured(folder, chat_template=TEMPLATE).fingerprint == first
    assert configured(folder, chat_template=TEMPLATE + " x").fingerprint != first


@pytest.mark.parametrize(
    ("config", "why"),
    [({}, "no chat template"), ({"chat_template": []}, "no chat template")],
)
def test_a_model_without_a_template_is_told(folder, config, why):
    """A base model cannot chat."""
    with pytest.raises(TokenizerError, match=why):
        configured(folder, **config)


def test_a_folder_without_a_tokenizer_is_told(tmp_path):
    """The message names the folder."""
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json"):
        EngineTokenizer.load(str(tmp_path))


def test_a_template_that_refuses_is_an_error(folder):
    """Templates may reject a conversation; that is no crash."""
    counter = configured(folder, chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidParameter, match="roles must alternate"):
        counter.count_messages([Message("user", "hi")])


def test_a_template_cannot_reach_out(folder):
    """A template is foreign code: it runs in jinja's sandbox."""
    counter = configured(folder, chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InvalidParameter):
        counter.count_messages([Message("user", "hi")])


def test_a_template_without_a_system_role_is_noticed(folder):
    """Some models have none: their instructions go into the question's own message."""
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    assert configured(folder, chat_template=TEMPLATE).takes_system
    assert not configured(folder, chat_template=refusing + TEMPLATE).takes_system
    messages = assemble("why", (), takes_system=False)
    assert [m.role for m in messages] == ["user"]
    assert messages[0].content.startswith(SYSTEM)


@pytest.mark.parametrize("text", ["hello world, this is text", "привет", "你好世界", ""])
def test_estimates_err_on_the_safe_side(text):
    """Without a tokenizer no text counts for nothing, and more bytes count for more."""
    counter = EstimatedTokens()
    assert counter.count(text) >= len(text.encode()) / 3
    assert not counter.exact
