"""What the model server's tests make: devices, shapes, and a model's folder, all by hand."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from model_server.checkpoint import ModelShape
from model_server.devices import Device
from tests.public_models import SMOLLM2

GIB = 1024**3

LLAMA_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "head_dim": 64,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> None:
    """A safetensors file: name to (type, shape, bytes)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + b"\0" * offset)


def write_model(folder: Path, **changes: Any) -> Path:
    """A model's folder with 96 bytes of weights; a change to None removes the key."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**LLAMA_CONFIG, **changes}
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    write_safetensors(
        folder / "model.safetensors",
        {"a.weight": ("BF16", [4, 8], 64), "b.weight": ("F32", [8], 32)},
    )
    return folder


def make_shape(**changes: Any) -> ModelShape:
    """SmolLM2-135M, or something close to it."""
    return replace(SMOLLM2, **changes)


def make_cpu(free_bytes: int = 16 * GIB) -> Device:
    """A machine without a GPU."""
    return Device(
        kind="cpu", name="Test CPU", total_bytes=free_bytes + GIB, free_bytes=free_bytes, cores=2
    )


def make_gpu(free_bytes: int = 23 * GIB, total_bytes: int = 24 * GIB, **changes: Any) -> Device:
    """A machine with one GPU."""
    values: dict[str, Any] = {
        "kind": "cuda",
        "name": "Test GPU",
        "total_bytes": total_bytes,
        "free_bytes": free_bytes,
        "uuid": "GPU-1234",
    }
    return Device(**{**values, **changes})
