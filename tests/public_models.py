"""
Models that people run and cards that they run them on, as the planner sees them; and its sum, made again.

Shared by the planner's tests and by `make plans`.
"""

from model_server.checkpoint import ModelShape
from model_server.devices import Device
from model_server.memory import GIB, activation_bytes, kv_bytes_per_token, weights_bytes
from model_server.planner import Plan

SMOLLM2 = ModelShape(
    model_type="llama",
    num_layers=30,
    hidden_size=576,
    intermediate_size=1536,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    vocab_size=49_152,
    max_position=8192,
    weight_bytes=269_030_016,
    float32_bytes=0,
    dtype="bfloat16",
)

PUBLIC_MODELS: dict[str, ModelShape] = {
    "SmolLM2-135M": SMOLLM2,
    "Qwen2.5-0.5B": ModelShape(
        model_type="qwen2",
        num_layers=24,
        hidden_size=896,
        intermediate_size=4864,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        vocab_size=151_936,
        max_position=32_768,
        weight_bytes=988_000_000,
        float32_bytes=0,
        dtype="bfloat16",
    ),
    "Llama-3.2-3B": ModelShape(
        model_type="llama",
        num_layers=28,
        hidden_size=3072,
        intermediate_size=8192,
        num_heads=24,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128_256,
        max_position=131_072,
        weight_bytes=6_425_000_000,
        float32_bytes=0,
        dtype="bfloat16",
    ),
    "Falcon-7B": ModelShape(
        model_type="falcon",
        num_layers=32,
        hidden_size=4544,
        intermediate_size=18_176,
        num_heads=71,
        num_kv_heads=1,
        head_dim=64,
        vocab_size=65_024,
        max_position=2048,
        weight_bytes=14_430_000_000,
        float32_bytes=0,
        dtype="bfloat16",
    ),
    "Mistral-7B-AWQ": ModelShape(
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
        float32_bytes=0,
        dtype="float16",
        quantization="awq",
    ),
    "Llama-3.1-70B": ModelShape(
        model_type="llama",
        num_layers=80,
        hidden_size=8192,
        intermediate_size=28_672,
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128_256,
        max_position=131_072,
        weight_bytes=141_100_000_000,
        float32_bytes=0,
        dtype="bfloat16",
    ),
    "Qwen2.5-72B-AWQ": ModelShape(
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
        float32_bytes=0,
        dtype="float16",
        quantization="awq",
    ),
}
"""From the models' own config.json files and the sizes of their safetensors files, by hand."""

CARDS_GB = (8, 24, 80)


def card(gigabytes: int) -> Device:
    """A GPU of that size with half a GiB of it in use, as on a desk or after a display was started."""
    total = gigabytes * GIB
    return Device(
        kind="cuda",
        name=f"{gigabytes} GB card",
        total_bytes=total,
        free_bytes=total - GIB // 2,
        uuid=f"GPU-{gigabytes}",
    )


def taken_bytes(plan: Plan) -> int:
    """
    What an engine under this plan takes, each part added up here and not by the planner.

    So a part that the planner leaves out of its own sum is still in this one.
    """
    shape = plan.shape
    activations = activation_bytes(
        shape,
        max_num_batched_tokens=plan.max_num_batched_tokens,
        max_num_seqs=plan.max_num_seqs,
    )
    kv_cache = plan.kv_tokens * kv_bytes_per_token(shape)
    return weights_bytes(shape) + activations + plan.sums.runtime + kv_cache
