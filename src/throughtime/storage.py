"""Files that are never left half-written: written beside the old one, synced, then renamed over it."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from throughtime.errors import StorageError

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space and go on",
    errno.EDQUOT: "the disk quota is used up; free some space and go on",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; choose a folder that you may write to",
    errno.EPERM: "permission denied; choose a folder that you may write to",
    errno.ENOTDIR: "a part of that path is a file, not a folder; choose another folder",
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` met while writing `path` into one clear line.

    Raises:
        StorageError: names the path, what the system said, and what to do; nothing that was there before is lost.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        remedy = _REMEDIES.get(error.errno or 0, "what was there before is kept")
        raise StorageError(f"cannot write {path}: {reason}; {remedy}") from error


def write_file(path: str | Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path` so that a reader sees the old file or the new one, never a part.

    Raises:
        StorageError: the disk is full, read-only or gone; the old file is untouched.
    """
    path = Path(path)
    content = data.encode("utf-8") if isinstance(data, str) else data
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = _partial(path)
        try:
            with open(fresh, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; when the block ends well, sync it and rename it to `path`.

    An existing `path` is replaced. When the block fails, `path` is as it was and the new folder is gone.

    Raises:
        StorageError: the disk is full, read-only or gone.
    """
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = _partial(path)
        fresh.mkdir()
        try:
            yield fresh
            for entry in [*fresh.rglob("*"), fresh]:
                _sync(entry)
            _swap(fresh, path)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the renames in the folder `path` outlive a power cut."""
    # Windows cannot open a folder; its rename is durable by itself.
    if os.name == "posix":
        _sync(path)


def _partial(path: Path) -> Path:
    """A new name beside `path`; tempfile's would be made for the owner alone, whatever the umask says."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")


def _swap(fresh: Path, path: Path) -> None:
    """Rename `fresh` to `path`; a folder already there steps aside first, as rename cannot replace a full one."""
    if not path.exists():
        os.rename(fresh, path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    os.rename(path, aside / path.name)
    try:
        os.rename(fresh, path)
    except OSError:
        os.rename(aside / path.name, path)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
