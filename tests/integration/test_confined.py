"""As a container runs it: no rights, another user, and a file system that cannot be written to."""

import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.fake_engine import FakeEngine, serving
from tests.faults import QUESTION, SMALL, upload
from tests.running import START_S, free_port, program

ROOT = Path(__file__).parents[2]
OWN = "/mnt"
"""Where the one tmpfs is that it may write to."""

USER = "10001"
"""That of deploy/orchestrator.Dockerfile."""


def why_not():
    """Why nothing can be confined like this here; None if it can."""
    if missing := [name for name in ("unshare", "setpriv") if shutil.which(name) is None]:
        return f"{' and '.join(missing)} missing: apt install util-linux"
    tried = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        check=False,
    )
    return "needs root, who may mount" if tried.returncode else None


def locked_above(path: Path) -> Path | None:
    """The folder that keeps others from an interpreter below it, as root's home does."""
    for folder in reversed(path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def opened(*needed: Path) -> list[str]:
    """Commands by which everybody may read these folders, in this mount namespace alone."""
    kept = {path: f"{OWN}/kept-{n}" for n, path in enumerate(needed) if locked_above(path)}
    quoted = {path: shlex.quote(str(path)) for path in kept}
    aside = [f"mkdir {to} && mount --bind {quoted[path]} {to}" for path, to in kept.items()]
    locked = sorted({shlex.quote(str(locked_above(path))) for path in kept})
    covered = [f"mount -t tmpfs -o mode=755 tmpfs {folder}" for folder in locked]
    back = [
        f"mkdir -p {quoted[path]} && mount --bind {to} {quoted[path]}" for path, to in kept.items()
    ]
    return [*aside, *covered, *back]


def confined(command: list[str]) -> list[str]:
    """The same command as a container would run it."""
    rights = ["--reuid", USER, "--regid", USER, "--clear-groups", "--no-new-privs"]
    rights += ["--bounding-set=-all", "--inh-caps=-all"]
    script = "\n".join([
        "set -e",
        f"mount -t tmpfs -o mode=1777 tmpfs {OWN}",
        *opened(Path(sys.base_prefix), Path(sys.prefix), ROOT),
        "mount -o remount,ro,bind / /",
        f"exec setpriv {shlex.join(rights)} {shlex.join(command)}",
    ])
    return ["unshare", "--mount", "sh", "-c", script]


@pytest.fixture
def running(tmp_path):
    """The orchestrator, in front of an engine."""
    if reason := why_not():
        pytest.skip(reason)
    port = free_port()
    with serving(FakeEngine()) as engine:
        settings = {"ENGINE_URL": engine.url, "PORT": str(port), "DATA_DIR": f"{OWN}/data"}
        settings |= {name.upper(): value for name, value in SMALL.items()}
        with program(
            "orchestrator",
            settings={f"ORCHESTRATOR_{name}": value for name, value in settings.items()}
            | {"HOME": OWN, "TMPDIR": OWN},
            url=f"http://127.0.0.1:{port}",
            ready_path="/healthz",
            log=tmp_path / "log",
            start_s=START_S,
            inside=confined,
        ) as started:
            yield started
            assert started.stop() == 0, started.tail()


def test_it_needs_no_rights_and_writes_nowhere_else(running):
    """A PDF goes in, is read in the sandbox, and is asked about."""
    family = running.descendants()
    assert len(family) >= 3, "the parser's processes are confined, too, and the embedder's"
    for one in family:
        told = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{one.pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        assert told["Uid"].split() == [USER] * 4
        assert int(told["CapEff"], 16) == int(told["CapPrm"], 16) == 0
        mounts = Path(f"/proc/{one.pid}/mounts").read_text().splitlines()
        (root,) = [line.split()[3] for line in mounts if line.split()[1] == "/"][-1:]
        assert "ro" in root.split(",")
    with httpx2.Client(base_url=running.url, timeout=60, trust_env=False) as http:
        upload(http)
        answer = http.post("/ask", json={"question": QUESTION, "degrade": False})
        assert answer.status_code == 200, answer.text
