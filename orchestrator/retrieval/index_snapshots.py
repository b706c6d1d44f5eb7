"""
Snapshots of indexes on disk that are whole or not used, whenever power fails.

A snapshot is two files: the data, and a manifest with its checksum and the generation of what is in
it, which is in the data file's name, too: until the manifest names the new one, the old one is whole.
Whatever is torn, missing or out of date is not read: the caller rebuilds from the document store.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write(
    base: Path, *, generation: int, facts: dict[str, Any], write_data: Callable[[Path], None]
) -> None:
    """
    Put a snapshot in the place of the one before.

    Args:
        base: The manifest is `<base>.json`; it names the data file, `<base>.<generation>.faiss`.
        generation: Which state this is.
        facts: What else the manifest says.
        write_data: Writes the data to the path that it is given.

    Raises:
        OSError: If the disk does not take it; the snapshot before it stays.
    """
    base.parent.mkdir(parents=True, exist_ok=True)
    data = _data(base, generation)
    temporary = data.with_suffix(".tmp")
    try:
        write_data(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    manifest = {"sha256": _sha256(temporary), "generation": generation, **facts}
    _replace(temporary, data)
    manifest_temporary = _manifest(base).with_suffix(".json.tmp")
    manifest_temporary.write_text(json.dumps(manifest), encoding="utf-8")
    _replace(manifest_temporary, _manifest(base))
    _remove_others(base, keep={data, _manifest(base)})


def find(base: Path, *, generation: int, facts: dict[str, Any]) -> Path | None:
    """The data file; None if it is missing, torn, damaged, of another generation or of other facts."""
    manifest = _read_manifest(base)
    wanted = {"generation": generation, **facts}
    if manifest is None or wanted.items() - manifest.items():
        return None
    data = _data(base, generation)
    try:
        return data if manifest.get("sha256") == _sha256(data) else None
    except OSError:
        return None


def torn(folder: Path) -> list[Path]:
    """The snapshots in a folder, by their base, whose manifest and data file do not agree."""
    found = []
    for path in sorted(folder.glob("*.json")):
        base = path.with_suffix("")
        manifest = _read_manifest(base) or {}
        try:
            whole = manifest.get("sha256") == _sha256(_data(base, manifest.get("generation")))
        except OSError:
            whole = False
        if not whole:
            found.append(base)
    return found


def forget(base: Path) -> None:
    """Remove a snapshot, if there is one."""
    _manifest(base).unlink(missing_ok=True)
    _remove_others(base, keep=set())


def _manifest(base: Path) -> Path:
    return base.with_name(f"{base.name}.json")


def _data(base: Path, generation: object) -> Path:
    return base.with_name(f"{base.name}.{generation}.faiss")


def _read_manifest(base: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads(_manifest(base).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _remove_others(base: Path, *, keep: set[Path]) -> None:
    """Remove what earlier snapshots of the same index, whole or half written, have left."""
    for path in base.parent.glob(f"{base.name}.*"):
        if path not in keep:
            path.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(temporary: Path, path: Path) -> None:
    """Put a file in the place of another, for good: contents and name are on disk afterwards."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
