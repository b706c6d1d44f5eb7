"""
Every knob of the model server, once: its name, unit, default and bounds.

Read from the environment at start, with the prefix `MODEL_SERVER_`, and nowhere else.
"""

import ipaddress
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from model_server.errors import ConfigurationError

PREFIX = "MODEL_SERVER_"


class Settings(BaseSettings):
    """What the environment asks of the model server."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True)

    model: Path = Field(
        description="Folder of the model: config.json, safetensors files and tokenizer."
    )
    served_model_name: str = Field(
        default="",
        description="Name of the model on the wire; empty means the folder's name, lower-case.",
    )
    engine: Literal["vllm", "tgi", "simulator"] = Field(
        default="vllm",
        description="What answers: vllm; tgi, which is not developed any more; or the simulator, "
        "which has no model and is there to try everything around one.",
    )
    tgi_launcher: Path = Field(
        default=Path("text-generation-launcher"),
        description="TGI's program, for the engine tgi: a path, or a name to be looked up.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Where the engine runs. auto: the GPU with the most free memory, else the CPU.",
    )
    host: str = Field(default="127.0.0.1", description="Address that the engine listens on.")
    engine_port: int = Field(
        default=8000, ge=1, le=65535, description="TCP port that the engine listens on."
    )
    control_host: str = Field(
        default="127.0.0.1", description="Address that the control API listens on."
    )
    control_port: int = Field(
        default=8081, ge=1, le=65535, description="TCP port that the control API listens on."
    )
    control_key: str = Field(
        default="",
        repr=False,
        description="What callers of the control API have to send as a bearer token; the "
        "orchestrator's is ORCHESTRATOR_CONTROL_KEY. Empty: none, and orders on loopback only.",
    )
    engine_python: Path = Field(
        default=Path(sys.executable),
        description="Python interpreter of the environment that has vLLM.",
    )
    log_dir: Path = Field(
        default=Path(".data/logs"), description="Folder of the engine's log, engine.log."
    )
    max_model_len: int | None = Field(
        default=None,
        ge=16,
        description="Longest prompt and answer together, in tokens. "
        "Unset: the model's own limit, at most 4096 on a CPU and 8192 on a GPU.",
    )
    max_num_seqs: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Sequences generated at the same time at most. Unset: 32 on a CPU, 256 on a GPU.",
    )
    memory_limit_bytes: int | None = Field(
        default=None,
        gt=0,
        description="Cap for everything that the engine takes, in bytes. Unset: what is free.",
    )
    kv_cache_bytes: int | None = Field(
        default=None,
        gt=0,
        description="Size of the KV cache in bytes, instead of the planned one.",
    )
    gpu_memory_utilization: float = Field(
        default=0.90,
        gt=0,
        le=1,
        description="Share of the GPU's whole memory that the engine may take at most.",
    )
    reserve_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Free memory in bytes that the plan leaves to others. "
        "Unset: 1 GiB on a CPU, 512 MiB on a GPU.",
    )
    embedder_bytes: int = Field(
        default=0,
        ge=0,
        description="What the orchestrator's embedder may allocate on the same GPU, in bytes "
        "(ORCHESTRATOR_EMBEDDER_MEMORY_BYTES); the plan leaves that much and a CUDA context to it. "
        "0: it runs on the CPU.",
    )
    index_bytes: int = Field(
        default=0,
        ge=0,
        description="What the orchestrator's vectors may take of the same GPU, in bytes "
        "(ORCHESTRATOR_INDEX_MEMORY_BYTES); the plan leaves that much and a CUDA context to them. "
        "0: they are searched on the CPU.",
    )
    enforce_eager: Literal["auto", "true", "false"] = Field(
        default="auto",
        description="true: run without compiling, which starts in half the time and answers "
        "somewhat slower. auto: true on a CPU, false on a GPU.",
    )
    start_timeout_s: float = Field(
        default=900.0, gt=0, description="How long one start of the engine may take, in seconds."
    )
    hang_timeout_s: float = Field(
        default=60.0,
        ge=1,
        description="How long a ready engine may do nothing and leave a question of one token "
        "unanswered before it is killed and started again, in seconds. Longer than its longest "
        "prompt takes to be read.",
    )
    idle_unload_s: float | None = Field(
        default=None,
        ge=1,
        description="An engine without a request for that many seconds is ended, and its memory "
        "given back; the next question to the orchestrator wakes it, which takes a start. Unset: "
        "never.",
    )
    stop_timeout_s: float = Field(
        default=15.0,
        ge=2,
        description="How long stopping may take, in seconds; what is left then is killed.",
    )
    engine_args: str = Field(
        default="",
        description="More arguments for vLLM, as in a shell; they win over the planned ones.",
    )

    @field_validator("engine_args")
    @classmethod
    def _splits_as_in_a_shell(cls, value: str) -> str:
        shlex.split(value)
        return value

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.engine_port == self.control_port:
            raise ValueError(
                f"{PREFIX}ENGINE_PORT and {PREFIX}CONTROL_PORT are both {self.engine_port}; "
                "give them two different ports"
            )
        return self

    @model_validator(mode="after")
    def _somebody_can_wake_it(self) -> Self:
        if self.idle_unload_s is not None and not (
            self.control_key or is_loopback(self.control_host)
        ):
            raise ValueError(
                f"{PREFIX}IDLE_UNLOAD_S is set, but on {self.control_host} nobody may wake the "
                f"engine: set {PREFIX}CONTROL_KEY, and the same as ORCHESTRATOR_CONTROL_KEY"
            )
        return self

    @property
    def name(self) -> str:
        """Name of the model on the wire; never empty."""
        return self.served_model_name or self.model.resolve().name.lower()

    @property
    def extra_engine_args(self) -> tuple[str, ...]:
        """`engine_args`, split."""
        return tuple(shlex.split(self.engine_args))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_settings(environ: Mapping[str, str]) -> Settings:
    """
    The settings that `environ` holds; pass `os.environ`, which pydantic-settings reads itself.

    Raises:
        ConfigurationError: If a value is missing or out of range, or if a name with our prefix
            is no setting: a misspelt knob must not be ignored.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(n for n in environ if n.upper().startswith(PREFIX) and n.upper() not in known)
    if unknown:
        raise ConfigurationError(
            f"{', '.join(unknown)}: no such setting. Known ones: {', '.join(sorted(known))}."
        )
    try:
        return Settings()
    except ValidationError as exc:
        raise ConfigurationError("; ".join(_complaint(e) for e in exc.errors())) from exc


def _complaint(error: Mapping[str, object]) -> str:
    """One line on one wrong value, in the words of the environment."""
    location = error["loc"]
    field = str(location[0]) if isinstance(location, tuple) and location else ""
    if not field:
        return f"{error['msg']}."
    name = PREFIX + field.upper()
    description = Settings.model_fields[field].description
    if error["type"] == "missing":
        return f"{name} is not set. {description}"
    return f"{name}={error['input']!r}: {error['msg']}. {description}"
