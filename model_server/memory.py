"""
How many bytes a model takes: weights, KV cache, activations. Pure arithmetic, no I/O.

Whatever is an estimate says so, and errs upwards.
"""

from model_server.checkpoint import ModelShape

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

SERVED_DTYPE_BYTES = 2
"""bfloat16 and float16, the types that models are served in."""


def weights_bytes(shape: ModelShape) -> int:
    """
    Bytes of the weights once they are loaded.

    The sum of the safetensors headers; what is stored as float32 is loaded at two bytes a value.
    """
    return shape.weight_bytes - shape.float32_bytes // 2


def kv_bytes_per_token(shape: ModelShape, kv_dtype_bytes: int = SERVED_DTYPE_BYTES) -> int:
    """
    Bytes of KV cache that one token of one sequence takes.

    A key and a value vector in each layer: 2 * layers * kv_heads * head_dim * kv_dtype_bytes.
    Holds for multi-head, grouped-query and multi-query attention; `checkpoint` lets no other in.

    Source:
        Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
        PagedAttention", section 3: a token of OPT-13B takes 2 * 5120 * 40 * 2 bytes = 800 KB.
    """
    return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * kv_dtype_bytes


def activation_bytes(shape: ModelShape, *, max_num_batched_tokens: int, max_num_seqs: int) -> int:
    """
    Upper estimate of what one forward pass holds besides weights and KV cache, in bytes.

    For each token of the batch, as if all of a layer were alive at once: residual, normed input
    and attention output (3 * hidden), queries, keys and values, and the gate, up and product
    vectors of the MLP (3 * intermediate). For each sequence: its logits, once in the served type
    and twice in float32 (the sampler's copy and its probabilities).

    Source:
        The order of operations of vLLM's `model_executor/models/llama.py` and `v1/sample`; on a
        GPU vLLM profiles the real figure at start.
    """
    qkv = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    per_token = (3 * shape.hidden_size + qkv + 3 * shape.intermediate_size) * SERVED_DTYPE_BYTES
    per_sequence = shape.vocab_size * (SERVED_DTYPE_BYTES + 2 * 4)
    return max_num_batched_tokens * per_token + max_num_seqs * per_sequence


def whole_blocks(num_bytes: int, *, bytes_per_token: int, block_tokens: int) -> tuple[int, int]:
    """
    What `num_bytes` of KV cache hold in whole blocks.

    Returns:
        The bytes and the tokens of the largest number of blocks that fit; both 0 if none does.
    """
    blocks = max(num_bytes, 0) // (bytes_per_token * block_tokens)
    return blocks * block_tokens * bytes_per_token, blocks * block_tokens


def human(num_bytes: int) -> str:
    """`num_bytes` for people, e.g. `1.41 GiB`."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(num_bytes) >= unit:
            value = num_bytes / unit
            return f"{value:.2f} {name}" if abs(value) < 100 else f"{value:.0f} {name}"  # noqa: PLR2004 - three digits read well
    return f"{num_bytes} B"
