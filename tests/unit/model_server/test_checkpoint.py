"""Reading a model's folder: what counts, what is damaged, and what cannot be planned."""

import json
import struct

import pytest

from model_server.checkpoint import read_checkpoint, safetensors_header
from model_server.errors import CheckpointError, UnsupportedModel
from tests.unit.model_server.making import LLAMA_CONFIG, write_model, write_safetensors


def test_a_whole_model_is_read(tmp_path):
    """Shape and exact bytes come from config.json and the safetensors header."""
    shape = read_checkpoint(write_model(tmp_path))
    assert (shape.num_layers, shape.hidden_size, shape.vocab_size) == (30, 576, 49152)
    assert (shape.num_heads, shape.num_kv_heads, shape.head_dim) == (9, 3, 64)
    assert (shape.weight_bytes, shape.float32_bytes) == (96, 32)
    assert shape.max_position == 8192
    assert shape.attention == "GQA"
    assert shape.dtype == "bfloat16"
    assert shape.quantization is None


@pytest.mark.parametrize(("kv_heads", "attention"), [(9, "MHA"), (3, "GQA"), (1, "MQA")])
def test_attention_is_named(tmp_path, kv_heads, attention):
    """The kind of attention follows from how many query heads share a key-value head."""
    folder = write_model(tmp_path, num_key_value_heads=kv_heads)
    assert read_checkpoint(folder).attention == attention


def test_what_config_leaves_out_is_derived(tmp_path):
    """Without head_dim, KV heads and intermediate size the usual ones are taken."""
    folder = write_model(
        tmp_path, head_dim=None, num_key_value_heads=None, intermediate_size=None, dtype=None
    )
    shape = read_checkpoint(folder)
    assert (shape.head_dim, shape.num_kv_heads, shape.intermediate_size) == (64, 9, 4 * 576)
    assert shape.dtype == "bf16"


def test_the_language_model_of_a_vision_model_counts(tmp_path):
    """A nested text_config holds the numbers of the language model."""
    folder = write_model(tmp_path, text_config={**LLAMA_CONFIG, "num_hidden_layers": 12})
    assert read_checkpoint(folder).num_layers == 12


def test_quantization_is_named(tmp_path):
    """The method of a quantized checkpoint is known."""
    folder = write_model(tmp_path, quantization_config={"quant_method": "awq", "bits": 4})
    assert read_checkpoint(folder).quantization == "awq"


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
def test_a_chat_template_is_seen(tmp_path, name):
    """A chat template may be a file of its own; without any there is none."""
    folder = write_model(tmp_path)
    assert not read_checkpoint(folder).has_chat_template
    (folder / name).write_text("{}")
    assert read_checkpoint(folder).has_chat_template


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kv_lora_rank": 512, "model_type": "deepseek_v3"}, "MLA, kv_lora_rank"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ({"model_type": "mamba2"}, "state-space"),
        ({"is_encoder_decoder": True, "model_type": "t5"}, "encoder-decoder"),
        ({"architectures": ["BertModel"]}, "BertModel is no language model"),
    ],
)
def test_kinds_that_cannot_be_planned_are_named(tmp_path, changes, words):
    """A model whose KV cache is not ordinary is refused, and the reason is in the message."""
    with pytest.raises(UnsupportedModel, match=words):
        read_checkpoint(write_model(tmp_path, **changes))


def test_full_and_sliding_layers_are_ordinary(tmp_path):
    """Models with sliding windows on some layers are planned as if none had one."""
    folder = write_model(tmp_path, layer_types=["sliding_attention", "full_attention"])
    assert read_checkpoint(folder).num_layers == 30


def test_a_missing_folder_says_what_to_set(tmp_path):
    """A folder that is not there names the setting."""
    with pytest.raises(CheckpointError, match="MODEL_SERVER_MODEL"):
        read_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"num_hidden_layers": "many"}'])
def test_a_damaged_config_is_a_checkpoint_error(tmp_path, content):
    """Whatever is wrong with config.json, the error names the file."""
    folder = write_model(tmp_path)
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_checkpoint(folder)


def test_heads_that_do_not_divide_are_refused(tmp_path):
    """KV heads that cannot be shared evenly mean a damaged configuration."""
    with pytest.raises(CheckpointError, match="9 attention heads cannot share 4"):
        read_checkpoint(write_model(tmp_path, num_key_value_heads=4))


def test_a_folder_without_safetensors_is_refused(tmp_path):
    """Other formats are named as what has to be converted."""
    folder = write_model(tmp_path)
    (folder / "model.safetensors").rename(folder / "model.gguf")
    with pytest.raises(CheckpointError, match="converted"):
        read_checkpoint(folder)


def test_the_index_decides_which_files_count(tmp_path):
    """Of several safetensors files those in the index are loaded; a missing one is named."""
    folder = write_model(tmp_path)
    write_safetensors(folder / "other.safetensors", {"x": ("BF16", [2], 4)})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": "model.safetensors"}}))
    assert read_checkpoint(folder).weight_bytes == 96
    index.write_text(json.dumps({"weight_map": {"a": "model-00002.safetensors"}}))
    with pytest.raises(CheckpointError, match="model-00002"):
        read_checkpoint(folder)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="no weight_map"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{x",
        struct.pack("<Q", 8) + b'{"a": 1}',
        struct.pack("<Q", 2) + b"{}" + b"trailing",
    ],
)
def test_a_corrupt_safetensors_header_is_a_checkpoint_error(tmp_path, content):
    """No header, a lying one, or one that is no JSON object: the file is named as damaged."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        safetensors_header(path)


def test_a_truncated_download_is_found(tmp_path):
    """A file that is shorter than its header says is damaged, though the header is whole."""
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": ("BF16", [50], 100)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="the file holds 99"):
        safetensors_header(path)
