"""Folders of exports: what is in them, and which may be replaced."""

from __future__ import annotations

from collections.abc import Collection
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
