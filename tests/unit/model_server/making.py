"""What the model server's tests make: devices, shapes, and a model's folder, all by hand."""

import json
import struct
from pathlib import Path
from typing import Any

from model_server.checkpoint import ModelShape
from model_server.devices import Device

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
    values: dict[str, Any] = {
        "model_type": "llama",
        "num_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_heads": 9,
        "num_kv_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "max_position": 8192,
        "weight_bytes": 269_030_016,
        "float32_bytes": 0,
        "dtype": "bfloat16",
    }
    return ModelShape(**{**values, **changes})


PUBLIC_SHAPES: dict[str, ModelShape] = {
    "Qwen2.5-0.5B": make_shape(
        model_type="qwen2",
        num_layers=24,
        hidden_size=896,
        intermediate_size=4864,
        num_heads=14,
        num_kv_heads=2,
        vocab_size=151_936,
        max_position=32_768,
        weight_bytes=988_000_000,
    ),
    "Llama-3.2-3B": make_shape(
        num_layers=28,
        hidden_size=3072,
        intermediate_size=8192,
        num_heads=24,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128_256,
        max_position=131_072,
        weight_bytes=6_425_000_000,
    ),
    "Falcon-7B": make_shape(
        model_type="falcon",
        num_layers=32,
        hidden_size=4544,
        intermediate_size=18_176,
        num_heads=71,
        num_kv_heads=1,
        vocab_size=65_024,
        max_position=2048,
        weight_bytes=14_430_000_000,
    ),
    "Mistral-7B-AWQ": make_shape(
        model_type="mistral",
        num_layers=32,
        hidden_size=4096,
        intermediate_size=14_336,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=32_000,
        max_position=32_768,
        weight_bytes=4_150_000_000,
        quantization="awq",
    ),
    "Llama-3.1-70B": make_shape(
        num_layers=80,
        hidden_size=8192,
        intermediate_size=28_672,
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128_256,
        max_position=131_072,
        weight_bytes=141_100_000_000,
    ),
    "Qwen2.5-72B-AWQ": make_shape(
        model_type="qwen2",
        num_layers=80,
        hidden_size=8192,
        intermediate_size=29_568,
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=152_064,
        max_position=32_768,
        weight_bytes=41_600_000_000,
        quantization="awq",
    ),
}
"""From the models' own config.json files and the sizes of their safetensors files, by hand."""


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
