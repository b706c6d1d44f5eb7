"""
Programs that tests use and that come from Debian: unpacked under `.tools`, nothing is installed.

    python3 deploy/debian_programs.py prometheus

Needs no root. Where there is no apt, or it reaches no archive, nothing is done and the exit code is 0:
what needs the program is skipped then, and says how to get it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
DOWNLOAD_S = 300.0


def unpacked(package: str) -> Path:
    """Where the package's files are, once they are there; laid out as from `/`."""
    return TOOLS / package


def fetch(package: str) -> str | None:
    """Download and unpack a package, unless it is there; gives why it could not be done."""
    folder = unpacked(package)
    if folder.exists():
        return None
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return "there is no apt here"
    TOOLS.mkdir(exist_ok=True)
    # Unpacked beside its place: an interrupted run must not be taken for a finished one.
    with tempfile.TemporaryDirectory(dir=TOOLS) as name:
        work = Path(name)
        try:
            _download(package, work)
            (archive,) = work.glob("*.deb")
            _run(["dpkg-deb", "--extract", str(archive), str(work / "files")], work)
        except (subprocess.SubprocessError, OSError, ValueError) as exc:
            said = getattr(exc, "stderr", None)
            return str(said or exc).strip().splitlines()[-1]
        (work / "files").rename(folder)
    return None


def _download(package: str, work: Path) -> None:
    """With the machine's own lists if it has them, else with lists made for this."""
    wanted = ["download", package]
    plain = ["apt-get", "-qq", "-o", "APT::Sandbox::User="]
    try:
        _run([*plain, *wanted], work)
    except subprocess.CalledProcessError:
        lists, cache = work / "lists", work / "cache"
        for folder in (lists / "partial", cache / "archives" / "partial"):
            folder.mkdir(parents=True)
        own = [*plain, "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
        _run([*own, "update"], work)
        _run([*own, *wanted], work)


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, timeout=DOWNLOAD_S
    )


def main() -> int:
    """Fetch what was named; always 0: nothing but tests needs any of it."""
    for package in sys.argv[1:]:
        if why := fetch(package):
            print(f"no {package} from Debian ({why}): tests that need it are skipped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
