"""
What a model is made of, read from its folder without loading it.

`config.json` gives the shape, the headers of the safetensors files the exact bytes of the weights.
No torch: a safetensors file starts with eight bytes of length and that much JSON.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from model_server.errors import CheckpointError, UnsupportedModel

_MAX_HEADER_BYTES = 100_000_000
"""What the safetensors library itself accepts: https://github.com/huggingface/safetensors."""

# config.json keys under which families of models keep the same number.
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_INTERMEDIATE = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
_FULL_ATTENTION = {"full_attention", "sliding_attention", "attention"}
_STATE_SPACE = ("mamba", "rwkv", "jamba", "bamba", "zamba", "falcon_h1", "recurrent_gemma")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """
    The numbers of a causal language model that decide how much memory it takes.

    Attributes:
        max_position: Longest sequence that the model was made for, in tokens.
        weight_bytes: Bytes of all tensors, as stored.
        float32_bytes: The part of `weight_bytes` that is stored as float32.
        dtype: Type named in config.json, e.g. `bfloat16`; of most bytes where it names none.
        quantization: Method named in config.json, e.g. `awq`; None for a plain model.
        has_chat_template: Whether the folder says how a chat becomes a prompt.
    """

    model_type: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    weight_bytes: int
    float32_bytes: int
    dtype: str
    quantization: str | None = None
    has_chat_template: bool = True

    @property
    def attention(self) -> str:
        """MHA, GQA or MQA: how many query heads share a key-value head."""
        if self.num_kv_heads == self.num_heads:
            return "MHA"
        return "MQA" if self.num_kv_heads == 1 else "GQA"


def read_checkpoint(folder: Path) -> ModelShape:
    """
    The shape of the model in `folder`.

    Raises:
        CheckpointError: If the folder, config.json or a safetensors file is missing or damaged.
        UnsupportedModel: If the memory of this kind of model cannot be planned here.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder. Set MODEL_SERVER_MODEL to the folder of a model, "
            "with config.json and safetensors files."
        )
    config = _read_json(folder / "config.json")
    text = config.get("text_config")
    if isinstance(text, dict):  # vision-language models keep the language model in here
        config = {**config, **text}
    _refuse_unsupported(config, folder)
    weights = _stored_bytes(folder)
    return _shape(config, weights, folder)


def safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """
    The tensors of one file: name to `{"dtype", "shape", "data_offsets"}`.

    Raises:
        CheckpointError: If the file is no safetensors file, or shorter than its header says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _parse_header(file, size)
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read: {exc.strerror}.") from exc
    except (struct.error, ValueError, AttributeError, KeyError, TypeError, IndexError) as exc:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({exc}). Download it again."
        ) from exc


def _parse_header(file: BinaryIO, size: int) -> dict[str, dict[str, Any]]:
    """The header, if it agrees with the file's size; ValueError and the like if not."""
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(size - 8, _MAX_HEADER_BYTES):
        raise ValueError(f"its header claims {length} bytes, the file has {size}")
    header: dict[str, dict[str, Any]] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if end != size - 8 - length:
        raise ValueError(f"its tensors take {end} bytes, the file holds {size - 8 - length}")
    return header


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise CheckpointError(
            f"{path} cannot be read: {exc.strerror}. A model's folder has a config.json."
        ) from exc
    except ValueError as exc:
        raise CheckpointError(f"{path} is not JSON ({exc}). Download the model again.") from exc
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a model's configuration: no JSON object.")
    return content


def _refuse_unsupported(config: Mapping[str, Any], folder: Path) -> None:
    """Raise UnsupportedModel for a model whose KV cache is not two vectors a layer and token."""
    reason = _unsupported_reason(config)
    if reason is not None:
        raise UnsupportedModel(
            f"{folder}: {reason}. Planned are decoder-only chat models with MHA, GQA or MQA "
            "attention (Llama, Qwen2/3, Mistral, Gemma, SmolLM, Phi, …); choose one of those."
        )


def _unsupported_reason(config: Mapping[str, Any]) -> str | None:
    kind = str(config.get("model_type", "")).lower()
    architectures = [str(a) for a in config.get("architectures") or []]
    if config.get("kv_lora_rank"):
        return "multi-head latent attention (MLA, kv_lora_rank) stores a compressed KV cache"
    layer_types = {
        str(t) for t in config.get("layer_types") or config.get("layers_block_type") or []
    }
    other = layer_types - _FULL_ATTENTION
    if other:
        return f"a hybrid model, with {', '.join(sorted(other))} layers"
    if any(word in kind for word in _STATE_SPACE) or "ssm_cfg" in config or "state_size" in config:
        return f"a state-space or hybrid model ({kind or 'ssm'}) keeps no ordinary KV cache"
    if config.get("is_encoder_decoder"):
        return f"an encoder-decoder model ({kind})"
    if architectures and not any(_generates(a) for a in architectures):
        return f"{', '.join(architectures)} is no language model that generates text"
    return None


def _generates(architecture: str) -> bool:
    return architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))


def _stored_bytes(folder: Path) -> dict[str, int]:
    """Bytes of all tensors in the folder, by stored type, e.g. `{"BF16": 269033472}`."""
    by_type: dict[str, int] = {}
    for path in _weight_files(folder):
        for tensor in safetensors_header(path).values():
            begin, end = tensor["data_offsets"]
            by_type[tensor["dtype"]] = by_type.get(tensor["dtype"], 0) + end - begin
    return by_type


def _weight_files(folder: Path) -> Iterator[Path]:
    """The safetensors files that are loaded: those of the index where there is one, else all."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} has no weight_map. Download the model again.")
        missing = sorted({n for n in weight_map.values() if not (folder / n).is_file()})
        if missing:
            raise CheckpointError(
                f"{folder} lacks {', '.join(missing[:3])}"
                f"{' …' if len(missing) > 3 else ''}: {len(missing)} of "  # noqa: PLR2004 - three names are enough to act on
                f"{len(set(weight_map.values()))} weight files. Finish the download."
            )
        yield from sorted(folder / name for name in set(weight_map.values()))
        return
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder} has no .safetensors file. Other formats (GGUF, .bin) have to be "
            "converted first."
        )
    yield from files


def _shape(config: Mapping[str, Any], weights: Mapping[str, int], folder: Path) -> ModelShape:
    heads = _number(config, _HEADS, folder)
    hidden = _number(config, _HIDDEN, folder)
    intermediate = next((config[k] for k in _INTERMEDIATE if config.get(k)), 4 * hidden)
    quantization = config.get("quantization_config") or {}
    largest = max(weights, key=lambda name: weights[name], default="BF16")
    return ModelShape(
        model_type=str(config.get("model_type", "unknown")),
        num_layers=_number(config, _LAYERS, folder),
        hidden_size=hidden,
        intermediate_size=_positive(intermediate, _INTERMEDIATE[0], folder),
        num_heads=heads,
        num_kv_heads=_kv_heads(config, heads, folder),
        head_dim=_positive(config.get("head_dim") or hidden // heads, "head_dim", folder),
        vocab_size=_number(config, ("vocab_size",), folder),
        max_position=_number(config, _POSITIONS, folder),
        weight_bytes=sum(weights.values()),
        float32_bytes=weights.get("F32", 0),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or largest.lower()),
        quantization=str(quantization["quant_method"]) if "quant_method" in quantization else None,
        has_chat_template=_has_chat_template(folder),
    )


def _kv_heads(config: Mapping[str, Any], heads: int, folder: Path) -> int:
    """Key-value heads; a model that names none has one for each query head, or one in all."""
    if config.get("multi_query"):
        return 1
    named = config.get("num_key_value_heads") or config.get("num_kv_heads") or heads
    kv_heads = _positive(named, "num_key_value_heads", folder)
    if heads % kv_heads:
        raise CheckpointError(
            f"{folder}/config.json: {heads} attention heads cannot share {kv_heads} KV heads."
        )
    return kv_heads


def _number(config: Mapping[str, Any], names: tuple[str, ...], folder: Path) -> int:
    for name in names:
        if config.get(name) is not None:
            return _positive(config[name], name, folder)
    raise CheckpointError(f"{folder}/config.json lacks {names[0]}. Download the model again.")


def _positive(value: object, name: str, folder: Path) -> int:
    if isinstance(value, list):  # a number for each layer: the largest is the safe side
        value = max(value, default=0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"{folder}/config.json: {name} is {value!r}, not a number.")
    if not (value >= 1 and math.isfinite(value)):
        raise CheckpointError(f"{folder}/config.json: {name} is {value}, not a positive number.")
    return int(value)


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(_read_json(path).get("chat_template"))
