"""Where verbs that write checkpoints write them, and what they refuse to overwrite."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from zcode_plugin.checkpoint import names
from zcode_plugin.errors import UserError


def output_name(out: str, first: Path) -> Path:
    """The name without a rank: `--out` itself, or the input's name in that folder.

    Raises:
        UserError: there is no folder in which to write.
    """
    path = Path(out)
    if path.suffix != ".pt" or out.endswith("/") or path.is_dir():
        path = path / names.without_rank(names.without_shard(first)).name
    _check_name(path)
    if not path.parent.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {path.parent.parent}; make it first")
    return path


def _check_name(path: Path) -> None:
    """Refuse the name of a rank's file, which readers take for one of several."""
    whole = names.without_rank(names.without_shard(path))
    if whole != path:
        suffix = path.stem.removeprefix(whole.stem)
        raise UserError(f"--out {path}: give the name without {suffix}")


def add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """`CKPT`, of verbs that read any layout."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CKPT",
        help="one file for all ranks, or any rank's file, or the name without a rank",
    )


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """`--out FILE` and `--force`, of verbs that write one file."""
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.pt", help="file to write")
    parser.add_argument("--force", action="store_true", help="overwrite FILE.pt")


def check_output(output: Path, inputs: list[Path], *, force: bool) -> None:
    """See `check_outputs`, of one file for all ranks; its folder must be there.

    Raises:
        UserError: naming the file or the folder.
    """
    check_outputs([output], output, inputs, force=force)
    _check_name(output)
    check_file(output)


def check_file(path: Path, inputs: Sequence[Path] = (), *, makes_folder: bool = False) -> None:
    """A file can be written as `--out`, so that no work is done in vain.

    Args:
        path: of the file.
        inputs: that are read; none of them is overwritten.
        makes_folder: its folder is made when the time comes.

    Raises:
        UserError: it is read, it is a folder, a device or a pipe, or there is no folder to write
            into.
    """
    if path.is_dir():
        raise UserError(f"--out {path} is a folder: name a file")
    if path.exists() and not path.is_file():  # a rename would take its place
        raise UserError(f"--out {path} is no ordinary file: name one, or a file to be made")
    if path.resolve() in {one.resolve() for one in inputs}:
        raise UserError(f"--out {path} is one of the files to read: name another")
    if not makes_folder and not path.parent.exists():
        raise UserError(f"--out {path}: there is no folder {path.parent}; make it first")
    check_folder(path.parent, f"--out {path}:")


def check_folder(folder: Path, what: str) -> None:
    """A folder is there, or can be made, and takes files.

    Args:
        folder: of files to be written.
        what: the start of the error.

    Raises:
        UserError: it is none, or takes no files.
    """
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{what} {folder} is no folder")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{what} {folder} takes no files; name another folder")


def check_outputs(outputs: list[Path], whole: Path, inputs: list[Path], *, force: bool) -> None:
    """Refuse to overwrite what is read, and anything without `--force`.

    Raises:
        UserError: naming the file; also one of a rank beyond those that are written, which would
            make the set one of another run.
    """
    read = {path.resolve() for path in inputs}
    for path in outputs:
        if path.resolve() in read:
            raise UserError(f"--out: {path} is one of the files to read; name another")
        if path.exists() and not force:
            raise UserError(f"{path} exists: --force overwrites it, --out names another")
    if outputs[0] != whole:
        for path in names.find_rank_files(whole).values():
            if path not in outputs:
                raise UserError(
                    f"{path} is of a run with more ranks: move it away, or name another --out"
                )
