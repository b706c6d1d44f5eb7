"""
What the engine is given of a device's memory, decided before anything is allocated.

Pure: a device, a model's shape and goals in, a plan or the reason why there is none out.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from model_server.alternatives import alternatives
from model_server.checkpoint import ModelShape
from model_server.devices import Device
from model_server.errors import ConfigurationError, DoesNotFit
from model_server.memory import (
    GIB,
    MIB,
    activation_bytes,
    human,
    kv_bytes_per_token,
    weights_bytes,
    whole_blocks,
)

DEFAULT_NUM_SEQS = {"cpu": 32, "cuda": 256}
"""Sequences in one batch, unless a goal says otherwise."""

_CPU_RUNTIME_BYTES = 2 * GIB
"""
What vLLM's three processes take besides weights and KV cache: Python, torch, the tokenizer, buffers.

Measured on vLLM 0.32, eager, after serving requests: proportional set size of API server, EngineCore
and worker together 3.06 GiB, less 0.25 GiB of weights and 1.00 GiB of KV cache = 1.81 GiB; rounded up.
"""

_CUDA_RUNTIME_BYTES = 1 * GIB
"""Allowance for the CUDA context, libraries and allocator slack; not measured."""

_CUDA_GRAPH_BYTES = 1 * GIB
"""Allowance for captured CUDA graphs, none when eager; not measured, vLLM logs the real figure."""

_CUDA_CONTEXT_BYTES = 768 * MIB
"""
Allowance for the CUDA context and libraries of a second process on the card.

Measured on an H100: 687 MiB with torch and cuBLAS (the embedder), some 290 with FAISS; rounded up.
"""

_FAISS_WORKING_BYTES = 64 * MIB
"""What the orchestrator lets FAISS compute in, beside the vectors."""

_LARGE_GPU_BYTES = 70 * GIB
"""From here on vLLM itself batches 8192 tokens, on smaller GPUs and CPUs 2048 (0.32, arg_utils)."""


@dataclass(frozen=True, slots=True)
class Goals:
    """
    What the settings ask for; None leaves the choice to the plan.

    Attributes:
        max_model_len: Tokens of prompt and answer together.
        memory_limit_bytes: Cap for everything that the engine takes.
        gpu_memory_utilization: Cap, as a share of a GPU's whole memory.
        reserve_bytes: Free memory to leave to others.
        embedder_bytes: What the embedder may allocate on the same card; 0 if it runs elsewhere.
        index_bytes: What the orchestrator's vectors may take of the same card; 0 if they do not.
        memory_share: Part of the budget that may be used at all; less than 1 after an engine ran
            out of memory.
        extra_bytes: What the engine is known to take beyond the formulas.
    """

    max_model_len: int | None = None
    max_num_seqs: int | None = None
    memory_limit_bytes: int | None = None
    kv_cache_bytes: int | None = None
    gpu_memory_utilization: float = 0.90
    reserve_bytes: int | None = None
    embedder_bytes: int = 0
    index_bytes: int = 0
    enforce_eager: bool = True
    memory_share: float = 1.0
    extra_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table that people read."""

    what: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sums:
    """
    The bytes of a plan, one figure each.

    Attributes:
        embedder: The embedder's slice of the card, its CUDA context included; 0 without one.
        index: The same for the vectors that are searched there.
        budget: What the engine may take in all: what is free, less the reserve and the slices,
            under every cap.
    """

    weights: int
    activations: int
    runtime: int
    reserve: int
    embedder: int
    index: int
    budget: int

    @property
    def fixed(self) -> int:
        """All that the engine takes besides its KV cache."""
        return self.weights + self.activations + self.runtime


@dataclass(frozen=True, slots=True)
class Plan:
    """
    How the engine is to be started.

    Attributes:
        kv_cache_bytes: Size of the KV cache, in whole blocks.
        kv_tokens: Tokens that it holds, all sequences together.
        gpu_memory_utilization: Planned share of the device's whole memory, in hundredths, downwards.
        dtype: Type that the weights are served in.
    """

    device: Device
    shape: ModelShape
    sums: Sums
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_bytes: int
    kv_tokens: int
    gpu_memory_utilization: float
    dtype: str
    enforce_eager: bool

    @property
    def total_bytes(self) -> int:
        """Everything that the engine takes; never more than the budget."""
        return self.sums.fixed + self.kv_cache_bytes

    @property
    def lines(self) -> tuple[Row, ...]:
        """The table, top to bottom."""
        shape, sums = self.shape, self.sums
        per_token = kv_bytes_per_token(shape)
        each = self.kv_tokens // self.max_num_seqs
        return (
            Row("device", self.device.name, _device_note(self.device)),
            Row("memory, total", human(self.device.total_bytes)),
            Row("memory, free", human(self.device.free_bytes)),
            Row("weights", human(sums.weights), f"{shape.model_type}, {_stored(shape)}"),
            Row(
                "KV cache",
                human(self.kv_cache_bytes),
                f"{self.kv_tokens:,} tokens of {per_token:,} bytes ({shape.attention}); "
                f"{each:,} for each of {self.max_num_seqs} sequences",
            ),
            Row(
                "activations",
                human(sums.activations),
                f"estimate, {self.max_num_batched_tokens:,} tokens a step",
            ),
            Row("engine's own", human(sums.runtime), "vLLM's processes"),
            Row("total", human(self.total_bytes), f"of a budget of {human(sums.budget)}"),
            *self._slices,
            Row("reserve", human(sums.reserve), "left to others"),
        )

    @property
    def _slices(self) -> tuple[Row, ...]:
        note = "its cap and its CUDA context; not the engine's"
        taken = (("embedder", self.sums.embedder), ("vector index", self.sums.index))
        return tuple(Row(what, human(size), note) for what, size in taken if size)

    def as_json(self) -> dict[str, Any]:
        """The plan for machines: every number in bytes or tokens, and the table's rows."""
        return {
            "device": asdict(self.device),
            "model": asdict(self.shape),
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "kv_cache_bytes": self.kv_cache_bytes,
            "kv_tokens": self.kv_tokens,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "dtype": self.dtype,
            "enforce_eager": self.enforce_eager,
            "bytes": {**asdict(self.sums), "total": self.total_bytes},
            "rows": [asdict(row) for row in self.lines],
        }


def block_tokens(device: Device) -> int:
    """Tokens in one block of vLLM's KV cache: 128 on a CPU, 16 on a GPU (its defaults in 0.32)."""
    return 128 if device.kind == "cpu" else 16


def make_plan(*, device: Device, shape: ModelShape, goals: Goals) -> Plan:
    """
    The plan that holds on this device.

    Raises:
        ConfigurationError: If a goal is beyond what the model or the device can do at all.
        DoesNotFit: If the memory does not reach for one sequence of full length; with the sums.
    """
    length = _max_model_len(device, shape, goals)
    seqs = goals.max_num_seqs or DEFAULT_NUM_SEQS[device.kind]
    batched = _batched_tokens(device, seqs)
    sums = _sums(device, shape, goals, seqs=seqs)
    kv_bytes, kv_tokens = _kv_cache(device, shape, goals, sums, length=length, seqs=seqs)
    share = (sums.fixed + kv_bytes) / device.total_bytes
    return Plan(
        device=device,
        shape=shape,
        sums=sums,
        max_model_len=length,
        max_num_seqs=seqs,
        max_num_batched_tokens=batched,
        kv_cache_bytes=kv_bytes,
        kv_tokens=kv_tokens,
        gpu_memory_utilization=max(0.01, math.floor(share * 100) / 100),
        dtype="bfloat16" if device.kind == "cpu" or device.bfloat16 else "float16",
        enforce_eager=goals.enforce_eager,
    )


def _max_model_len(device: Device, shape: ModelShape, goals: Goals) -> int:
    if goals.max_model_len is None:
        return min(shape.max_position, 4096 if device.kind == "cpu" else 8192)
    if goals.max_model_len > shape.max_position:
        raise ConfigurationError(
            f"MODEL_SERVER_MAX_MODEL_LEN={goals.max_model_len}, but the model was made for at most "
            f"{shape.max_position} tokens. Set it to {shape.max_position} or less."
        )
    return goals.max_model_len


def _batched_tokens(device: Device, seqs: int) -> int:
    return max(8192 if _is_large(device) else 2048, seqs)


def _sums(device: Device, shape: ModelShape, goals: Goals, *, seqs: int) -> Sums:
    batched = _batched_tokens(device, seqs)
    reserve = goals.reserve_bytes
    if reserve is None:
        reserve = GIB if device.kind == "cpu" else 512 * MIB
    embedder = _slice(device, goals.embedder_bytes, "EMBEDDER")
    index = _slice(device, goals.index_bytes, "INDEX", working_bytes=_FAISS_WORKING_BYTES)
    # The slices also count when they have been taken already: too little is safe.
    others = embedder + index
    caps = [device.free_bytes - reserve - others]
    if goals.memory_limit_bytes is not None:
        caps.append(goals.memory_limit_bytes)
    if device.kind == "cuda":
        caps.append(int(device.total_bytes * goals.gpu_memory_utilization) - others)
    return Sums(
        weights=weights_bytes(shape),
        activations=activation_bytes(shape, max_num_batched_tokens=batched, max_num_seqs=seqs),
        runtime=_runtime_bytes(device, goals),
        reserve=reserve,
        embedder=embedder,
        index=index,
        budget=max(0, int(min(caps) * goals.memory_share)),
    )


def _slice(device: Device, given_bytes: int, name: str, *, working_bytes: int = 0) -> int:
    """What a part of the orchestrator takes of the card, with its CUDA context; 0 if nothing."""
    if not given_bytes:
        return 0
    if device.kind == "cpu":
        raise ConfigurationError(
            f"MODEL_SERVER_{name}_BYTES={given_bytes} is a slice of a GPU, but the engine "
            f"runs on the CPU. Unset it, and ORCHESTRATOR_{name}_DEVICE too if both run there."
        )
    return given_bytes + working_bytes + _CUDA_CONTEXT_BYTES


def _runtime_bytes(device: Device, goals: Goals) -> int:
    if device.kind == "cpu":
        return _CPU_RUNTIME_BYTES + goals.extra_bytes
    graphs = 0 if goals.enforce_eager else _CUDA_GRAPH_BYTES
    return _CUDA_RUNTIME_BYTES + graphs + goals.extra_bytes


def _kv_cache(
    device: Device, shape: ModelShape, goals: Goals, sums: Sums, *, length: int, seqs: int
) -> tuple[int, int]:
    """
    Bytes and tokens of the KV cache.

    A GPU's memory has no other use, so all of the budget goes there. A CPU's has: enough for every
    sequence at half its full length, which is where sequences are on average, and no more.
    """
    per_token, block = kv_bytes_per_token(shape), block_tokens(device)
    one_sequence = _one_sequence_bytes(device, shape, length)
    room = sums.budget - sums.fixed
    wanted = goals.kv_cache_bytes
    if wanted is None:
        half = math.ceil(seqs * length / 2 / block) * block * per_token
        wanted = room if device.kind == "cuda" else min(room, max(half, one_sequence))
    if wanted > room or one_sequence > room:
        kv = max(wanted, one_sequence)
        raise DoesNotFit(_why_not(device, shape, goals, sums, length=length, seqs=seqs, kv=kv))
    if wanted < one_sequence:
        raise DoesNotFit(
            f"MODEL_SERVER_KV_CACHE_BYTES={wanted} is too little: one sequence of {length} tokens "
            f"takes {one_sequence} ({per_token} a token, blocks of {block}). Raise it, or lower "
            f"MODEL_SERVER_MAX_MODEL_LEN to {whole_blocks(wanted, bytes_per_token=per_token, block_tokens=block)[1]}."
        )
    return whole_blocks(wanted, bytes_per_token=per_token, block_tokens=block)


def _one_sequence_bytes(device: Device, shape: ModelShape, length: int) -> int:
    block = block_tokens(device)
    return math.ceil(length / block) * block * kv_bytes_per_token(shape)


def _why_not(
    device: Device,
    shape: ModelShape,
    goals: Goals,
    sums: Sums,
    *,
    length: int,
    seqs: int,
    kv: int,
) -> str:
    """The sums, and what would fit instead."""

    def fits(other: ModelShape, *, length: int, seqs: int) -> bool:
        needed = _sums(device, other, goals, seqs=seqs)
        return _one_sequence_bytes(device, other, length) <= needed.budget - needed.fixed

    if fits(shape, length=length, seqs=seqs):
        room = human(sums.budget - sums.fixed)
        found: tuple[str, ...] = (f"a KV cache of {room}, or one that is left to the plan",)
    else:
        block = block_tokens(device)
        found = alternatives(shape, length=length, seqs=seqs, block_tokens=block, fits=fits)
    would = f"What would fit: {'; or '.join(found)}" if found else "No model fits in that"
    return (
        f"The model does not fit on {device.name}: weights {human(sums.weights)} + KV cache "
        f"{human(kv)} ({length} tokens a sequence, {kv_bytes_per_token(shape)} bytes a token) + "
        f"activations {human(sums.activations)} + engine {human(sums.runtime)} = "
        f"{human(sums.fixed + kv)}, but the budget is {human(sums.budget)} "
        f"({human(device.free_bytes)} free of {human(device.total_bytes)}, {human(sums.reserve)} "
        f"reserved{_for_others(sums)}, caps applied). {human(sums.fixed + kv - sums.budget)} missing: free that much, "
        f"or raise the caps. {would}."
    )


def _for_others(sums: Sums) -> str:
    taken = (("embedder", sums.embedder), ("vector index", sums.index))
    return "".join(f", {human(size)} for the {what}" for what, size in taken if size)


def _is_large(device: Device) -> bool:
    return device.kind == "cuda" and device.total_bytes >= _LARGE_GPU_BYTES


def _device_note(device: Device) -> str:
    bfloat16 = "bfloat16" if device.bfloat16 else "no bfloat16 hardware"
    return f"{device.cores} cores, {bfloat16}" if device.kind == "cpu" else bfloat16


def _stored(shape: ModelShape) -> str:
    stored = shape.quantization or shape.dtype
    return f"{stored}, {shape.num_layers} layers, up to {shape.max_position:,} tokens"
