"""
Regenerates the locks in `requirements/` from their inputs: what `make lock` runs.

Each lock holds exact versions and is installed with `--no-deps`, so a lock is the whole truth
about an environment. Versions already locked are kept unless UPGRADE=1.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = "uv==0.13.9"
LOCKED_PYTHON = "3.11"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def package_name(line: str) -> str:
    """The normalised name in front of a lock line, or "" for a comment or an empty line."""
    match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line.strip())
    return re.sub(r"[-_.]+", "-", match.group()).lower() if match else ""


def without(lines: list[str], names: set[str]) -> list[str]:
    """The lock lines whose package is not among the names."""
    return [line for line in lines if package_name(line) and package_name(line) not in names]


def find_links() -> list[str]:
    """The folders or pages where pip is configured to look for wheels besides its index."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    values = re.findall(r"^\S*find-links='([^']*)'$", listed, flags=re.MULTILINE)
    return sorted({link for value in values for link in value.split()})


def compile_lock(
    sources: list[str], target: Path, *, cpu: bool, constraints: list[str], overrides: str | None
) -> None:
    """
    Writes one lock.

    Args:
        sources: Names of input files in `requirements/`.
        target: The lock.
        cpu: Whether torch comes as its CPU build, which PyPI does not carry: it is looked for
            where pip is configured to look, and then in PyTorch's own index.
        constraints: Lock lines whose versions are to be taken over.
        overrides: Name of the file of packages to leave out.
    """
    folder = ROOT / "requirements"
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header"]
    command += ["--no-annotate", "--python-version", LOCKED_PYTHON, "--output-file", str(target)]
    command += [str(folder / source) for source in sources]
    command += ["--override", str(folder / overrides)] if overrides else []
    command += ["--upgrade"] if os.environ.get("UPGRADE") else []
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraint_file:
        constraint_file.write("\n".join(constraints) + "\n")
        constraint_file.flush()
        command += ["--constraint", constraint_file.name]
        if not cpu:
            subprocess.run(command, check=True, env=environment_without_links())
            return
        command += [argument for link in find_links() for argument in ("--find-links", link)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            index = ["--extra-index-url", TORCH_CPU_INDEX, "--index-strategy", "unsafe-best-match"]
            subprocess.run([*command, *index], check=True)
    # uv notes where it looked; that is true of this machine only.
    lines = target.read_text().splitlines()
    target.write_text("\n".join(line for line in lines if not line.startswith("--")).strip() + "\n")


def environment_without_links() -> dict[str, str]:
    """Our environment, but with nothing in it that would offer a CPU build of torch."""
    return {name: value for name, value in os.environ.items() if name != "UV_FIND_LINKS"}


def main() -> None:
    """Writes every lock and says which."""
    folder = ROOT / "requirements"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", UV], check=True)
    app = folder / "app.txt"
    compile_lock(["app.in"], app, cpu=True, constraints=[], overrides=None)
    app_lines = app.read_text().splitlines()

    # Both app environments get the same dev.txt, so what they share must have one version.
    shared = without(app_lines, {"faiss-cpu", "torch"})
    gpu = folder / "app-gpu.txt"
    compile_lock(["app-gpu.in"], gpu, cpu=False, constraints=shared, overrides=None)

    held = {package_name(line) for line in app_lines}
    added: list[str] = []
    for name, inputs in (("ocr", ["app.in", "ocr.in"]), ("dev", ["app.in", "ocr.in", "dev.in"])):
        lock = folder / f"{name}.txt"
        compile_lock(inputs, lock, cpu=True, constraints=app_lines + added, overrides=None)
        new = without(lock.read_text().splitlines(), held)
        lock.write_text("\n".join(new) + "\n")
        held |= {package_name(line) for line in new}
        added += new

    frameworks = folder / "frameworks.txt"
    compile_lock(["frameworks.in"], frameworks, cpu=False, constraints=[], overrides=None)

    for device in ("cpu", "gpu"):
        name = f"engine-{device}"
        compile_lock(
            [f"{name}.in"],
            folder / f"{name}.txt",
            cpu=device == "cpu",
            constraints=[],
            overrides=f"{name}.overrides.txt",
        )
    for lock in sorted(folder.glob("*.txt")):
        if "overrides" not in lock.name:
            print(f"{lock.relative_to(ROOT)}: {len(lock.read_text().splitlines())} packages")


if __name__ == "__main__":
    main()
