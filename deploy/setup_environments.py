"""
Creates the Python environments from the locks in `requirements/`, once.

`.venv` holds the orchestrator and the control program of model_server (and, with `--dev`, the
tests); `.venv-engine` holds vLLM and the bundled model; for the tests `.venv-frameworks` holds those that
people already have their code in, with what they want beside them. What was installed is stamped, and the
stamp is written last: a second run takes no time, an interrupted one is done again.
Needs nothing but the standard library. Installs go by pip, which knows this machine's mirrors.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).resolve().parent.parent
MINIMUM_PYTHON = (3, 11)
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
GIB = 1 << 30

# Installed sizes as du reports them, pip's cache of downloads included, rounded up.
DISK_BYTES = {
    (".venv", "cpu"): 3 * GIB,
    (".venv-engine", "cpu"): 5 * GIB,
    (".venv", "gpu"): 9 * GIB,
    (".venv-engine", "gpu"): 18 * GIB,
    (".venv-frameworks", "cpu"): GIB,
    (".venv-frameworks", "gpu"): GIB,
}


APP_MODULES = (
    "orchestrator.server",
    "orchestrator.cli",
    "orchestrator.documents.parser_process",
    "orchestrator.retrieval.embedder_process",
    "sentence_transformers",
    "model_server.__main__",
)
"""A parser may not write: what it imports is compiled here, or anew for each one that starts."""
ENGINE_MODULES = ("vllm.entrypoints.openai.api_server",)


class SetupError(Exception):
    """The environments cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Layer:
    """
    What one pip command installs.

    Attributes:
        source: The file that decides what that is.
        arguments: What pip is told to install.
        modules: What the programs import of it when they start.
    """

    name: str
    source: Path
    arguments: tuple[str, ...]
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Environment:
    """A folder with a Python of its own, and the layers that go into it, in order."""

    folder: Path
    layers: tuple[Layer, ...]

    @property
    def python(self) -> Path:
        """The interpreter of this environment."""
        return self.folder / "bin" / "python"


def detect_device(environ: Mapping[str, str], *, root: Path = Path("/")) -> str:
    """
    "gpu" where an NVIDIA driver is loaded, "cpu" otherwise; DEVICE decides if it is set.

    Raises:
        SetupError: If DEVICE is neither.
    """
    wanted = environ.get("DEVICE", "")
    if wanted:
        if wanted not in {"cpu", "gpu"}:
            raise SetupError(f"DEVICE is {wanted!r}; it can be cpu or gpu.")
        return wanted
    has_driver = (root / "proc/driver/nvidia/version").exists()
    on_path = shutil.which("nvidia-smi", path=environ.get("PATH", "")) is not None
    return "gpu" if has_driver or on_path else "cpu"


def environments(
    root: Path,
    *,
    device: str,
    dev: bool,
    engine: bool,
    ocr: bool = False,
    frameworks: bool = False,
) -> list[Environment]:
    """The environments that are wanted, each with the locks that fit the device."""
    app = lock_layer(root, "app", "app-gpu" if device == "gpu" else "app")
    # `--no-build-isolation`: setuptools comes from the lock, not from the network.
    package = ("--no-build-isolation", "--editable", str(root))
    tidegate = Layer("tidegate", root / "pyproject.toml", package, APP_MODULES)
    pictures = (lock_layer(root, "ocr", "ocr"),) if ocr or dev else ()
    tests = (lock_layer(root, "dev", "dev"),) if dev else ()
    wanted = [Environment(root / ".venv", (app, *pictures, *tests, tidegate))]
    if engine:
        engine_lock = lock_layer(root, "engine", f"engine-{device}")
        layers = (replace(engine_lock, modules=ENGINE_MODULES),)
        wanted.append(Environment(root / ".venv-engine", layers))
    if frameworks:
        layer = lock_layer(root, "frameworks", "frameworks")
        wanted.append(Environment(root / ".venv-frameworks", (layer,)))
    return wanted


def lock_layer(root: Path, name: str, lock: str) -> Layer:
    """The layer that installs everything in one of the locks."""
    source = root / "requirements" / f"{lock}.txt"
    return Layer(name, source, ("-r", str(source)))


def layer_stamp(environment: Environment, layer: Layer) -> str:
    """
    A digest of everything that a layer's installed files depend on.

    The folder is part of it because scripts and the editable install hold absolute paths:
    a checkout that was moved is set up again.
    """
    parts = [platform.python_version(), str(environment.folder), layer.source.read_text()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def stamp_file(environment: Environment, layer: Layer) -> Path:
    """Where a layer's stamp lies."""
    return environment.folder / f".installed-{layer.name}"


def missing_layers(environment: Environment) -> list[Layer]:
    """The layers that are not installed as their source says; all, if the first is not."""
    if not environment.python.exists():
        return list(environment.layers)
    missing = [layer for layer in environment.layers if not is_installed(environment, layer)]
    return list(environment.layers) if environment.layers[0] in missing else missing


def is_installed(environment: Environment, layer: Layer) -> bool:
    """Whether the layer's stamp is the one that its source asks for."""
    file = stamp_file(environment, layer)
    return file.exists() and file.read_text() == layer_stamp(environment, layer)


def check_machine(
    *, version: tuple[int, int], has_module: Callable[[str], bool], free_bytes: int, need_bytes: int
) -> None:
    """
    Finds out whether this machine can hold the environments.

    Raises:
        SetupError: If Python is too old, cannot make environments, or the disk is too full.
    """
    found = ".".join(map(str, version))
    if version < MINIMUM_PYTHON:
        raise SetupError(
            f"Python {found} is too old: 3.11 or newer is needed. If another one is installed, "
            "name it: make run PYTHON=python3.12"
        )
    if not (has_module("venv") and has_module("ensurepip")):
        raise SetupError(
            f"This Python {found} cannot create environments (no venv or no ensurepip). "
            f"On Debian and Ubuntu: sudo apt install python{found}-venv"
        )
    if free_bytes < need_bytes:
        raise SetupError(
            f"Too little disk: {free_bytes / GIB:.1f} GiB free, about {need_bytes / GIB:.0f} GiB "
            "needed for what is to be installed. Free some, or put the checkout on another disk."
        )


class Runner:
    """Runs commands, keeps their output, and can stop them all when we are told to stop."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._stopping = False

    def run(self, command: list[str]) -> tuple[int, str]:
        """Exit code and output of a command, once it has ended."""
        if self._stopping:
            return 1, "stopped"
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._running.add(process)
        if self._stopping:
            self.stop()
        try:
            output, _ = process.communicate()
        finally:
            self._running.discard(process)
        return process.returncode, output

    def stop(self) -> None:
        """Kills what runs, with everything that it started."""
        self._stopping = True
        for process in list(self._running):
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


class Installer:
    """
    Brings environments to what their locks say.

    Attributes:
        run: Takes a command, gives exit code and output.
        say: Takes a line for the console.
    """

    def __init__(
        self,
        *,
        device: str,
        run: Callable[[list[str]], tuple[int, str]],
        say: Callable[[str], None],
    ) -> None:
        self._device = device
        self._run = run
        self._say = say

    def install(self, environment: Environment, layers: list[Layer]) -> None:
        """
        Makes the environment anew if its first layer is missing, then installs the layers.

        Raises:
            SetupError: If a step fails; the message carries the end of its output.
        """
        name = environment.folder.name
        if layers[0] == environment.layers[0]:
            command = [sys.executable, "-m", "venv", "--clear", str(environment.folder)]
            self._step(f"{name}: new environment", command)
        for layer in layers:
            stamp_file(environment, layer).unlink(missing_ok=True)
            self._install_torch(environment, layer)
            size = f", {len(locked(layer))} packages" if locked(layer) else ""
            self._step(f"{name}: {layer.name}{size}", [*pip(environment), *layer.arguments])
            self._first_import(environment, layer)
            stamp_file(environment, layer).write_text(layer_stamp(environment, layer))

    def _first_import(self, environment: Environment, layer: Layer) -> None:
        """
        Imports what the programs will, so that Python compiles that, and only that, once.

        Also where PYTHONDONTWRITEBYTECODE is set: without the compiled files each start takes 10 to
        20 s longer. A failure is told and goes on: a system library may be missing, and the
        program that needs it says so better.
        """
        if not layer.modules:
            return
        started = time.monotonic()
        imports = f"import {', '.join(layer.modules)}"
        command = ["env", "-u", "PYTHONDONTWRITEBYTECODE", str(environment.python), "-c", imports]
        code, output = self._run(command)
        label = f"{environment.folder.name}: first import"
        if code:
            last = (output.strip().splitlines() or ["no output"])[-1]
            self._say(f"  {label} failed, going on: {last}")
        else:
            self._say(f"  {label} ({time.monotonic() - started:.0f} s)")

    def _install_torch(self, environment: Environment, layer: Layer) -> None:
        """
        Installs torch by itself, because where it comes from differs from machine to machine.

        The CPU build (`+cpu`) is not on PyPI: first wherever pip is configured to look, then
        PyTorch's own index. On a GPU, `===` keeps a `+cpu` build that pip may see from matching.
        """
        pin = next((line for line in locked(layer) if line.startswith("torch==")), None)
        if pin is None:
            return
        wanted = pin.replace("==", "===") if self._device == "gpu" else pin
        command = [*pip(environment), wanted]
        label = f"{environment.folder.name}: {pin}"
        started = time.monotonic()
        code, output = self._run(command)
        if code and "No matching distribution found for torch" in output:
            started = time.monotonic()
            code, output = self._run([*command, "--extra-index-url", TORCH_CPU_INDEX])
        self._conclude(label, command, code, output, time.monotonic() - started)

    def _step(self, label: str, command: list[str]) -> None:
        started = time.monotonic()
        code, output = self._run(command)
        self._conclude(label, command, code, output, time.monotonic() - started)

    def _conclude(
        self, label: str, command: list[str], code: int, output: str, elapsed_s: float
    ) -> None:
        if code:
            tail = "\n".join(f"    {line}" for line in output.strip().splitlines()[-30:])
            raise SetupError(
                f"{label}: failed with exit code {code} after {elapsed_s:.0f} s.\n{tail}\n"
                f"  The command was: {' '.join(command)}\n"
                "  If the network or a package index failed, run the same make command again: "
                "what is complete is kept. A mirror is set in pip's own configuration "
                "(pip config set global.index-url …)."
            )
        self._say(f"  {label} ({elapsed_s:.0f} s)")


def pip(environment: Environment) -> list[str]:
    """
    The start of every installation command.

    Byte-compiling is left to the first import: it would take a third of the whole time here,
    most of it for modules that are never imported.
    """
    options = ["--no-deps", "--no-input", "--no-compile", "--progress-bar", "off"]
    return [str(environment.python), "-m", "pip", "install", *options]


def locked(layer: Layer) -> list[str]:
    """The exact requirements that a layer installs; none if it has no lock."""
    if layer.source.suffix != ".txt":
        return []
    return [line for line in layer.source.read_text().splitlines() if "==" in line]


def install_all(
    installer: Installer,
    wanted: list[tuple[Environment, list[Layer]]],
    *,
    stop: Callable[[], None],
    tick: Callable[[float], None],
) -> None:
    """
    Installs the environments side by side: unpacking keeps one core busy each.

    Raises:
        SetupError: The first failure; the other environment is stopped then.
    """
    started = time.monotonic()
    with ThreadPoolExecutor(max_workers=len(wanted)) as pool:
        try:
            pending = {pool.submit(installer.install, *item) for item in wanted}
            while pending:
                done, pending = wait(pending, timeout=1)
                for future in done:
                    future.result()
                tick(time.monotonic() - started)
        except BaseException:
            stop()
            raise


def terminate(signum: int, _frame: object) -> NoReturn:
    """Turns a request to stop into an exception, so that what runs is stopped too."""
    raise SystemExit(128 + signum)


def show_elapsed(elapsed_s: float) -> None:
    """Keeps a running clock on the last line of a terminal; writes nothing elsewhere."""
    if sys.stdout.isatty():
        print(f"\r  … {elapsed_s:.0f} s\r", end="", flush=True)


def setup(*, dev: bool, engine: bool, ocr: bool) -> None:
    """
    Does what is missing, and says so; silent if nothing is.

    Raises:
        SetupError: If it cannot be done.
    """
    device = detect_device(os.environ)
    candidates = environments(
        ROOT, device=device, dev=dev, engine=engine, ocr=ocr, frameworks=dev and engine
    )
    wanted = [(item, missing_layers(item)) for item in candidates]
    wanted = [(item, layers) for item, layers in wanted if layers]
    whole = [item for item, layers in wanted if layers[0] == item.layers[0]]
    check_machine(
        version=sys.version_info[:2],
        has_module=lambda name: importlib.util.find_spec(name) is not None,
        free_bytes=shutil.disk_usage(ROOT).free,
        need_bytes=sum(DISK_BYTES[item.folder.name, device] for item in whole),
    )
    if not wanted:
        return
    print(f"setting up for {device.upper()} (once; later starts skip this)", flush=True)
    runner = Runner()
    installer = Installer(device=device, run=runner.run, say=lambda line: print(line, flush=True))
    install_all(installer, wanted, stop=runner.stop, tick=show_elapsed)


def main() -> int:
    """Exit code 0 when the environments are as their locks say, 1 with the reason otherwise."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--dev", action="store_true", help="tests and checks as well")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, terminate)
    try:
        setup(
            dev=arguments.dev,
            engine=not os.environ.get("ENGINE_URL"),
            ocr=os.environ.get("OCR", "") not in {"", "0"},
        )
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
