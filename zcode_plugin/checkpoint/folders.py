"""Folders of exports, written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from zcode_plugin.errors import UserError

WEIGHTS, CONFIG, SYMBOLS = "model.safetensors", "config.json", "symbols.txt"
GENERATION, TOKENIZER = "generation_config.json", "tokenizer_config.json"
SENTENCEPIECE = "sentencepiece.model"
# Of the folder that holds them here, too.
MODULES = tuple(f"{name}_zcode_moe.py" for name in ("modeling", "configuration", "tokenization"))
FILES = frozenset((WEIGHTS, CONFIG, SYMBOLS, GENERATION, TOKENIZER, SENTENCEPIECE, *MODULES))


def check_folder(path: Path, *, force: bool) -> None:
    """Refuse what a new export must not replace: anything but an export, and that without `force`.

    Raises:
        UserError: naming the folder.
    """
    check_not_here(path)
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}; make it first")
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"--out {path} is a file: name a folder")
    if not any(path.iterdir()):
        return
    if not all((path / name).is_file() for name in (CONFIG, WEIGHTS)):
        raise UserError(f"--out {path} holds other files than an export: name another folder")
    check_own(path, FILES, "an export")
    if not force:
        raise UserError(f"{path} exists: --force replaces it, --out names another")


def check_own(path: Path, own: Collection[str], what: str) -> None:
    """Refuse to replace a folder to which somebody has added something.

    Args:
        path: the folder.
        own: names of all that is made with it.
        what: it is, for the error.

    Raises:
        UserError: naming what else is in it.
    """
    added = sorted({entry.name for entry in path.iterdir()} - set(own))
    if added:
        raise UserError(
            f"--out {path} holds {added[0]}, which is no part of {what}: move it away, or name "
            "another folder"
        )


def check_not_here(path: Path) -> None:
    """Refuse the working folder: another takes its place, and whoever is in it stays in the old.

    Raises:
        UserError: naming it.
    """
    if path.resolve() == Path.cwd():
        raise UserError(f"--out {path} is the working folder: name one that is to be made")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name, and its place, at the end.

    Of a link, that to which it leads. On any failure `path` is what it was, and nothing is left
    behind.

    Raises:
        UserError: a file cannot be written.
    """
    place = path.resolve()
    partial = place.with_name(f".{place.name}.partial-{os.getpid()}")
    try:
        partial.mkdir()
        yield partial
        take_place(partial, place)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def take_place(partial: Path, path: Path) -> None:
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
