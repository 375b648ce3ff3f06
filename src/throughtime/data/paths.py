"""From what a user names (files, folders, globs, standard input, the standard library) to a list of files."""

from __future__ import annotations

import atexit
import difflib
import functools
import glob
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from throughtime.data.cache import cache_root
from throughtime.data.formats import TextFile, is_empty
from throughtime.errors import DataError
from throughtime.storage import storage_errors

STDLIB = "stdlib:"
"""The name that stands for the sources of Python's own standard library."""

# fmt: off
TEXT_SUFFIXES = frozenset({
    ".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".html", ".htm", ".xml", ".css",
    ".srt", ".log", ".conll", ".conllu", ".abc", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".cxx",
    ".hpp", ".hh", ".cu", ".java", ".kt", ".scala", ".js", ".ts", ".go", ".rs", ".rb", ".php", ".pl",
    ".lua", ".r", ".jl", ".hs", ".ml", ".lisp", ".clj", ".ex", ".erl", ".swift", ".sh", ".sql", ".toml",
    ".yaml", ".yml", ".ini", ".cfg",
})
# fmt: on
"""What a folder is searched for, besides rows; a file named outright is taken whatever its suffix."""
ROW_SUFFIXES = frozenset({".jsonl", ".ndjson", ".csv", ".parquet"})

_NOT_LIBRARY = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


def resolve(paths: Sequence[str | Path]) -> list[TextFile]:
    """The files that `paths` name, in order: of a folder (searched recursively) and of a glob, sorted.

    Hidden files and empty ones are passed over where a folder or a glob brings them; a file named twice is taken once.

    Raises:
        DataError: a path is missing (the nearest existing name is told), a glob or a folder brings nothing,
            or a file named outright is empty.
    """
    if not paths:
        raise DataError("data: no path given; name files, folders, globs, or - for standard input")
    unique: dict[Path, TextFile] = {}
    for file in (file for path in paths for file in _resolve_one(path)):
        unique.setdefault(file.path.resolve(), file)
    return list(unique.values())


def stdlib_files() -> list[Path]:
    """The sources of this Python's standard library, sorted; tests and installed packages are left out.

    Raises:
        DataError: this Python came without them.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in _walk(root, _NOT_LIBRARY) if path.suffix == ".py" and path.stat().st_size]
    if not files:
        raise DataError(f"{STDLIB} no sources of the standard library in {root}; name a text of your own with --data")
    return files


def _resolve_one(path: str | Path) -> list[TextFile]:
    if str(path) == "-":
        return [_named(TextFile(_spool(sys.stdin.buffer), "standard input"))]
    if str(path) == STDLIB:
        return [TextFile(file, str(file)) for file in stdlib_files()]
    place = Path(path).expanduser()
    if place.is_dir():
        return _in_folder(place)
    if place.exists():
        return [_named(TextFile(place, str(path)))]
    if glob.has_magic(str(path)):
        return _in_glob(place)
    raise _missing(place)


def _named(file: TextFile) -> TextFile:
    if is_empty(file):
        raise DataError(f"{file.name}: the file is empty; give a file with text in it")
    return file


def _in_folder(folder: Path) -> list[TextFile]:
    files = [TextFile(path, str(path)) for path in _walk(folder) if _is_text(path)]
    files = [file for file in files if not is_empty(file)]
    if not files:
        raise DataError(
            f"{folder}: no text in this folder; taken are files such as .txt, .md, .py, .jsonl, .csv, .parquet, "
            ".txt.gz: name others outright, or by a glob"
        )
    return files


def _in_glob(pattern: Path) -> list[TextFile]:
    matches = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]
    files = [TextFile(path, str(path)) for path in matches if path.is_file()]
    files = [file for file in files if not is_empty(file)]
    if not files:
        raise DataError(f"{pattern}: the pattern matches no file with text in it; check it, or name a folder")
    return files


def _walk(folder: Path, left_out: frozenset[str] = frozenset()) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in left_out and not name.startswith("."))
        yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))


def _is_text(path: Path) -> bool:
    inner = Path(path.stem) if path.suffix.lower() == ".gz" else path
    return inner.suffix.lower() in TEXT_SUFFIXES | ROW_SUFFIXES


def _missing(path: Path) -> DataError:
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        path, parent = parent, parent.parent
    nearest = difflib.get_close_matches(path.name, [entry.name for entry in parent.iterdir()], n=1)
    hint = f"did you mean {parent / nearest[0]}?" if nearest else "check the path"
    return DataError(f"{path}: no such file or folder; {hint}")


@functools.cache
def _spool(stream: BinaryIO) -> Path:
    """Standard input can be read once, a text is read several times: it is kept in a file until the program ends."""
    folder = cache_root() / "stdin"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".txt", delete=False) as copy:
            atexit.register(Path(copy.name).unlink, missing_ok=True)
            shutil.copyfileobj(stream, copy)
    return Path(copy.name)
