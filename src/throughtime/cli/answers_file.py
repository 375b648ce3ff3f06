"""Where answers go: to standard output as they come, or to a file that is replaced only once all are there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TextIO

from throughtime.cli.output import note, write
from throughtime.errors import UsageError
from throughtime.storage import storage_errors, sync_folder

STANDARD = "-"


def refuse_overwriting(source: str, output: str) -> None:
    """Nothing, where the output is not what is read.

    Raises:
        UsageError: it is.
        DataError: there is no such source.
    """
    if STANDARD in (source, output):
        return
    from throughtime.data.paths import resolve

    place = Path(output).expanduser()
    for file in resolve([source]):
        if place.resolve() == file.path.resolve() or (place.exists() and place.samefile(file.path)):
            raise UsageError(
                f"predict: --output {output} is the --input, which would be lost; give the answers another file"
            )


@contextmanager
def answers_file(output: str) -> Iterator[Callable[[str], None]]:
    """A block with a function that writes text to `output`, "-" being standard output.

    A file is written beside its place, as FILE.partial, and takes that place when the block ends well: until then
    what was there is untouched. When the block fails, what is written so far stays, and its name is told.

    Raises:
        UsageError: it is a folder.
        StorageError: the disk is full, read-only or gone.
    """
    place = Path(output).expanduser()
    if output == STANDARD:
        yield write
        return
    if place.is_dir():
        raise UsageError(f"predict: --output {output} is a folder; name a file in it")
    if place.exists() and not place.is_file():
        # A device or a named pipe: nothing to replace.
        with storage_errors(place), open(place, "w", encoding="utf-8", newline="\n") as file:
            yield _writer(file, place)
        return
    # A link stays one: what it points to is replaced.
    with _partial(place.resolve() if place.is_symlink() else place) as write_partial:
        yield write_partial


@contextmanager
def _partial(place: Path) -> Iterator[Callable[[str], None]]:
    with storage_errors(place):
        if not place.parent.exists():
            place.parent.mkdir(parents=True)
        file = _new_file(place)
    beside = Path(file.name)
    try:
        yield _writer(file, place)
        with storage_errors(place):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(beside, place)
            sync_folder(place.parent)
    except BaseException:
        with storage_errors(beside):
            file.close()
            if beside.stat().st_size:
                state = "is as it was" if place.exists() else "is not there yet"
                note(f"throughtime: note: {place} {state}; the answers so far are in {beside}")
            else:
                beside.unlink()
        raise


def _new_file(place: Path) -> TextIO:
    """FILE.partial, or FILE.partial-2 and so on where one is left from before."""
    for number in count(1):
        path = place.with_name(f"{place.name}.partial{'' if number == 1 else f'-{number}'}")
        try:
            return open(path, "x", encoding="utf-8", newline="\n")
        except FileExistsError:
            continue
    raise AssertionError


def _writer(file: TextIO, place: Path) -> Callable[[str], None]:
    def write_text(text: str) -> None:
        with storage_errors(place):
            file.write(text)

    return write_text
