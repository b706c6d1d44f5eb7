"""
Looks through our code for what invites misuse, and through our locks for what is known to be broken.

    make audit

bandit reads the code (what is excused, and why, is in pyproject.toml). pip-audit asks PyPI's advisories
for every version in every lock; where they cannot be reached it says so, which is no failure of ours.
The exit code is 1 if either found something.
"""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools" / "audit"
PINNED = ("pip==26.3", "bandit==1.9.4", "pip-audit==2.10.1")
"""In an environment of their own: nothing that runs or is tested needs them, and they need a lot."""

CODE = ("orchestrator", "model_server", "deploy", "loadtest")
LOCKS = ("app.txt", "app-gpu.txt", "ocr.txt", "engine-cpu.txt", "engine-gpu.txt", "dev.txt")
UNREACHABLE = ("Failed to resolve", "Max retries", "ConnectionError", "timed out")


def tool_environment() -> Path:
    """Where the tools' programs are; made at the first call."""
    wanted = "\n".join(PINNED)
    stamp = TOOLS / "installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(TOOLS, with_pip=True, clear=True)
        command = [str(TOOLS / "bin" / "python"), "-m", "pip", "install", "--quiet", *PINNED]
        subprocess.run(command, check=True)
        stamp.write_text(wanted)
    return TOOLS / "bin"


def code_is_sound(tools: Path) -> bool:
    """Whether bandit has nothing to say."""
    command = [str(tools / "bandit"), "--quiet", "--configfile", "pyproject.toml", "--recursive"]
    return subprocess.run([*command, *CODE], cwd=ROOT, check=False).returncode == 0


def locks_are_sound(tools: Path, lock: str) -> bool:
    """Whether no advisory names a version in this lock, as far as that can be asked here."""
    command = [str(tools / "pip-audit"), "--disable-pip", "--no-deps", "--progress-spinner", "off"]
    ended = subprocess.run(
        [*command, "--requirement", f"requirements/{lock}"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    told = f"{ended.stdout}{ended.stderr}"
    packages = sum("==" in line for line in (ROOT / "requirements" / lock).read_text().splitlines())
    skipped = told.count("could not be audited")
    if any(word in told for word in UNREACHABLE) or skipped >= packages:
        print(f"{lock}: not asked, the advisories cannot be reached from here")
        return True
    print(f"{lock}: {packages - skipped} of {packages} packages looked up\n{told}")
    return ended.returncode == 0


def main() -> int:
    """Look through everything; the exit code."""
    tools = tool_environment()
    sound = [code_is_sound(tools), *(locks_are_sound(tools, lock) for lock in LOCKS)]
    print("nothing found" if all(sound) else "see above")
    return 0 if all(sound) else 1


if __name__ == "__main__":
    sys.exit(main())
