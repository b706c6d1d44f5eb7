"""A small disk of its own, to be filled without harm."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(place: Path, num_bytes: int) -> Iterator[Path | None]:
    """A disk of that size at a new folder; None where only root may mount one, and we are not."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        yield None
        return
    try:
        yield place
    finally:
        # Whoever still holds a file keeps the disk until it ends.
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Take all that is left of a disk; gives the file to be removed."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        block = b"x" * 65536
        while block:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]
    return filler
