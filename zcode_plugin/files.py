"""Files and folders that are written whole or not at all.

All of them are written under a temporary name beside their own, which they get at the end; of a
link that is the name to which it leads.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from zcode_plugin.errors import UserError


def partial_name(path: Path) -> Path:
    """Under which this process writes a file or folder before it gets its own name."""
    place = path.resolve()
    return place.with_name(f".{place.name}.partial-{os.getpid()}")


def write_all(files: Iterable[tuple[Path, Callable[[BinaryIO], object]]]) -> int:
    """Write files that belong together: none gets its name before all are written.

    Args:
        files: paths, and what writes each into an open file.

    Returns:
        Their size in bytes.

    Raises:
        UserError: one cannot be written; nothing is left behind.
    """
    partials: dict[Path, Path] = {}
    path = Path()
    try:
        for path, write in files:
            partials[path] = partial_name(path)
            with partials[path].open("wb") as file:  # a path would put its name into the file
                write(file)
        for path, whole in partials.items():
            os.replace(whole, path.resolve())
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise UserError(f"{path} cannot be written: {str(error).splitlines()[0]}") from error
    finally:
        for left in partials.values():
            left.unlink(missing_ok=True)
    return sum(path.stat().st_size for path in partials)


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write bytes that belong together, see `write_all`."""

    def writer(content: bytes) -> Callable[[BinaryIO], object]:
        return lambda file: file.write(content)

    write_all((path, writer(content)) for path, content in contents.items())


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write texts that belong together, see `write_all`."""
    write_files({path: text.encode("utf-8") for path, text in texts.items()})


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write bit by bit: it gets its name at the end, and on any failure none."""
    partial = partial_name(path)
    try:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path.resolve())
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name, and its place, at the end.

    On any failure `path` is what it was, and nothing is left behind; what a process left that was
    killed is removed by the next.

    Raises:
        UserError: a file in it cannot be written.
    """
    place = path.resolve()
    partial = partial_name(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(place)
        partial.mkdir()
        yield partial
        _take_place(partial, place)
    except OSError as error:
        if error.filename and not Path(error.filename).is_relative_to(partial):
            raise  # of another file, which whoever catches it names
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _take_place(partial: Path, path: Path) -> None:
    """Give a folder the name of another, which is removed; where that fails, all is as it was."""
    # No rename replaces a folder that holds something: the old one steps aside first.
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    is_there = path.exists()
    if is_there:
        path.rename(old)
    try:
        partial.rename(path)
    except BaseException:
        if is_there:
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(path: Path) -> None:
    """Remove what a killed process left; one that still runs keeps its folder."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        owner = left.name.rpartition("-")[2]
        if owner.isdigit() and not _runs(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
