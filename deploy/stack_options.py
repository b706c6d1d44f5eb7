"""
What `make run` can be told by variables, and what it tells the two programs.

The environment of the children is a contract: both programs read nothing else.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.child_process import Program
from deploy.setup_environments import detect_device
from model_server.planner import DEFAULT_NUM_SEQS
from orchestrator.settings import EMBEDDER_GPU_BYTES, INDEX_GPU_BYTES

LOOKAHEAD = 4
"""Questions let in beyond the engine's batch, so that it never waits for a retrieval."""

BUNDLED_NAME = "smollm2-135m-instruct"
MAX_PORT = 65535


class OptionError(Exception):
    """A variable cannot be used; the message names it and says what it can be."""


@dataclass(frozen=True, slots=True)
class StackOptions:
    """
    The variables of `make run`, read once.

    Attributes:
        model: Hugging Face id or folder; "" for the bundled model.
        embedding_model: The same for the embedder.
        external_engine_url: An OpenAI-compatible server that already runs; "" to start our own.
        tokenizer: Of an external engine's model; "" if not known.
        data_dir: Holds everything that outlives the processes.
        device: "cpu" or "gpu" if one of them is wanted; "" for what the machine has.
        installed_device: Which of the two the engine was installed for.
    """

    root: Path
    model: str
    embedding_model: str
    external_engine_url: str
    tokenizer: str
    port: int
    engine_port: int
    control_port: int
    data_dir: Path
    device: str = ""
    installed_device: str = "cpu"

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], *, root: Path) -> "StackOptions":
        """
        The options that the environment asks for; an empty variable counts as not given.

        Raises:
            OptionError: If a port is no port, or ENGINE_URL no URL.
        """
        engine_url = environ.get("ENGINE_URL", "").rstrip("/")
        if engine_url and not engine_url.startswith(("http://", "https://")):
            raise OptionError(
                f"ENGINE_URL is {engine_url!r}; it is a URL such as http://127.0.0.1:8000"
            )
        return cls(
            root=root,
            model=environ.get("MODEL", ""),
            embedding_model=environ.get("EMBEDDING_MODEL", ""),
            external_engine_url=engine_url.removesuffix("/v1"),
            tokenizer=environ.get("TOKENIZER", ""),
            port=port_from(environ, "PORT", 8080),
            engine_port=port_from(environ, "ENGINE_PORT", 8000),
            control_port=port_from(environ, "CONTROL_PORT", 8081),
            data_dir=Path(environ.get("DATA_DIR") or root / ".data").expanduser().resolve(),
            device=environ.get("DEVICE", ""),
            installed_device=detect_device(environ),
        )

    @property
    def starts_engine(self) -> bool:
        """Whether model_server and an engine are ours to start."""
        return not self.external_engine_url

    @property
    def engine_url(self) -> str:
        """Where the engine answers, without /v1."""
        return self.external_engine_url or f"http://127.0.0.1:{self.engine_port}"

    @property
    def control_url(self) -> str | None:
        """Where model_server answers; None if we start none."""
        return f"http://127.0.0.1:{self.control_port}" if self.starts_engine else None

    @property
    def engine_python(self) -> Path:
        """The interpreter of the environment that holds vLLM."""
        return self.root / ".venv-engine" / "bin" / "python"

    def ports(self) -> dict[str, int]:
        """The ports that we listen on, by the variable that sets them."""
        ports = {"PORT": self.port}
        if self.starts_engine:
            ports |= {"ENGINE_PORT": self.engine_port, "CONTROL_PORT": self.control_port}
        return ports

    def programs(
        self, *, model: Path | None, embedder: Path | None, environ: Mapping[str, str]
    ) -> list[Program]:
        """
        The programs to keep up, in the order they are started.

        Args:
            model: Folder of the generation model; None with an external engine.
            embedder: Folder of the embedding model; None for the bundled one.
            environ: What they inherit besides what is set here.
        """
        logs = self.data_dir / "logs"
        inherited = {**environ, "PYTHONUNBUFFERED": "1"}
        programs = []
        if model is not None:
            programs.append(
                Program(
                    name="model_server",
                    command=(sys.executable, "-m", "model_server", "serve"),
                    environment=inherited | self._model_server_settings(model, logs, inherited),
                    log=logs / "model_server.log",
                )
            )
        programs.append(
            Program(
                name="orchestrator",
                command=(sys.executable, "-m", "orchestrator", "serve"),
                environment=self._places(inherited)
                | inherited
                | self._orchestrator_settings(model, embedder)
                | self._control_key(inherited),
                log=logs / "orchestrator.log",
            )
        )
        return programs

    def _places(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """How many questions may be with an engine of ours: its batch, and a few more."""
        if not self.starts_engine:
            return {}
        device = "cuda" if self.installed_device == "gpu" else "cpu"
        batch = inherited.get("MODEL_SERVER_MAX_NUM_SEQS") or str(DEFAULT_NUM_SEQS[device])
        if not batch.isdecimal():
            return {}  # model_server will say what is wrong with it
        return {"ORCHESTRATOR_MAX_CONCURRENT_REQUESTS": str(int(batch) + LOOKAHEAD)}

    def _control_key(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """What model_server asks of its callers, the orchestrator has to know."""
        key = inherited.get("MODEL_SERVER_CONTROL_KEY")
        if not (key and self.starts_engine) or inherited.get("ORCHESTRATOR_CONTROL_KEY"):
            return {}
        return {"ORCHESTRATOR_CONTROL_KEY": key}

    def _model_server_settings(
        self, model: Path, logs: Path, environ: Mapping[str, str]
    ) -> dict[str, str]:
        # A hub id is the name that people know a model by; a folder's own name otherwise.
        is_hub_id = bool(self.model) and not Path(self.model).expanduser().is_dir()
        name = self.model if is_hub_id else (model.name if self.model else BUNDLED_NAME)
        device = {"cpu": "cpu", "gpu": "cuda"}.get(self.device)
        return (
            ({"MODEL_SERVER_DEVICE": device} if device else {})
            | _slice(environ, "EMBEDDER", EMBEDDER_GPU_BYTES)
            | _slice(environ, "INDEX", INDEX_GPU_BYTES)
            | {
                "MODEL_SERVER_MODEL": str(model),
                "MODEL_SERVER_SERVED_MODEL_NAME": name,
                "MODEL_SERVER_ENGINE_PORT": str(self.engine_port),
                "MODEL_SERVER_CONTROL_PORT": str(self.control_port),
                "MODEL_SERVER_ENGINE_PYTHON": str(self.engine_python),
                "MODEL_SERVER_LOG_DIR": str(logs),
            }
        )

    def _orchestrator_settings(self, model: Path | None, embedder: Path | None) -> dict[str, str]:
        settings = {
            "ORCHESTRATOR_HOST": "127.0.0.1",
            "ORCHESTRATOR_PORT": str(self.port),
            "ORCHESTRATOR_DATA_DIR": str(self.data_dir),
            "ORCHESTRATOR_ENGINE_URL": self.engine_url,
        }
        if self.control_url is not None:
            settings["ORCHESTRATOR_CONTROL_URL"] = self.control_url
        tokenizer = self.tokenizer or (str(model) if model is not None else "")
        if tokenizer:
            settings["ORCHESTRATOR_TOKENIZER"] = tokenizer
        if embedder is not None:
            settings["ORCHESTRATOR_EMBEDDING_MODEL"] = str(embedder)
        return settings


def _slice(environ: Mapping[str, str], name: str, default_bytes: int) -> dict[str, str]:
    """What a part may take of a GPU, for model_server's plan; unless that is set by hand."""
    if environ.get(f"MODEL_SERVER_{name}_BYTES"):
        return {}
    if environ.get(f"ORCHESTRATOR_{name}_DEVICE", "cpu") in {"", "cpu"}:
        return {}
    given = environ.get(f"ORCHESTRATOR_{name}_MEMORY_BYTES")
    return {f"MODEL_SERVER_{name}_BYTES": given or str(default_bytes)}


def port_from(environ: Mapping[str, str], variable: str, default: int) -> int:
    """
    The port that a variable sets.

    Raises:
        OptionError: If it is not a number from 1 to 65535.
    """
    text = environ.get(variable, "").strip()
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_PORT:
        raise OptionError(f"{variable} is {text!r}; it is a port number from 1 to {MAX_PORT}")
    return int(text)
