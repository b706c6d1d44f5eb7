"""Settings come from the environment, once, and nothing in it is ignored."""

import os

import pytest

from model_server.errors import ConfigurationError
from model_server.settings import PREFIX, Settings, load_settings


def load(monkeypatch, **values):
    """Settings from an environment with just these, and a model."""
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    for name, value in {"MODEL": "/models/Some-Model", **values}.items():
        if value is not None:
            monkeypatch.setenv(PREFIX + name, value)
    return load_settings(os.environ)


def test_defaults(monkeypatch):
    """With a model alone everything else has a default, and its name is the folder's."""
    settings = load(monkeypatch)
    assert settings.name == "some-model"
    assert (settings.engine_port, settings.control_port) == (8000, 8081)
    assert settings.max_model_len is None


def test_values_are_read(monkeypatch):
    """Values of the environment win, and extra arguments are split as in a shell."""
    settings = load(monkeypatch, SERVED_MODEL_NAME="x", ENGINE_PORT="9000", ENGINE_ARGS="--a 'b c'")
    assert (settings.name, settings.engine_port) == ("x", 9000)
    assert settings.extra_engine_args == ("--a", "b c")


def test_an_empty_value_is_the_default(monkeypatch):
    """A variable that is set to nothing counts as not set."""
    assert load(monkeypatch, MAX_MODEL_LEN="").max_model_len is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"MODEL": None}, "MODEL_SERVER_MODEL is not set"),
        ({"MAX_NUM_SEQ": "4"}, "MODEL_SERVER_MAX_NUM_SEQ: no such setting"),
        ({"ENGINE_PORT": "70000"}, "MODEL_SERVER_ENGINE_PORT='70000'"),
        ({"STOP_TIMEOUT_S": "soon"}, "in seconds"),
        ({"ENGINE_ARGS": "'open"}, "MODEL_SERVER_ENGINE_ARGS"),
        ({"CONTROL_PORT": "8000"}, "two different ports"),
    ],
)
def test_a_wrong_environment_is_one_clear_error(monkeypatch, values, words):
    """A missing, misspelt or impossible setting names itself in the message."""
    with pytest.raises(ConfigurationError, match=words):
        load(monkeypatch, **values)


def test_every_setting_is_described():
    """Each knob has a sentence that ends with a full stop."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
