"""`zcode average`: the mean of several checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from zcode_plugin.checkpoint import names
from zcode_plugin.cli.outputs import check_outputs, output_name
from zcode_plugin.console import count, format_table, step
from zcode_plugin.errors import UserError

DESCRIPTION = """Average the weights of several checkpoints of a run, as the script of fairseq's
repository does; each may be one file or the files of all ranks. Weights of --store-ema are
averaged too, the optimizer's state is left out."""
EPILOG = """Without --merge, sets of rank files give a set of rank files.

example:
  zcode average checkpoints --num-update-checkpoints 5 --out average.pt --merge
  zcode average run/checkpoint8-rank-0.pt run/checkpoint9-rank-0.pt --out m.pt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add(
        "checkpoints",
        type=Path,
        nargs="+",
        metavar="CKPT",
        help="files, or any rank's, or without a rank; or one folder",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--num-epoch-checkpoints",
        type=int,
        metavar="N",
        help="of the folder, the newest N checkpointEPOCH.pt",
    )
    group.add_argument(
        "--num-update-checkpoints",
        type=int,
        metavar="N",
        help="of the folder, the newest N checkpoint_EPOCH_UPDATES.pt",
    )
    add(
        "--checkpoint-upper-bound",
        type=int,
        metavar="K",
        help="of the folder, none above this epoch or number of updates",
    )
    add("--out", type=Path, required=True, metavar="FILE.pt", help="name without a rank")
    add("--merge", action="store_true", help="write one file whatever the layout of the input")
    add("--force", action="store_true", help="overwrite files")


def run(args: argparse.Namespace) -> int:
    """Average and print what was averaged."""
    from zcode_plugin.checkpoint import config, io
    from zcode_plugin.checkpoint.average import average_ranks, average_whole
    from zcode_plugin.checkpoint.gather import find_files

    checkpoints = [find_files(path) for path in _chosen(args)]
    in_ranks = not args.merge and all(
        names.rank_of(files[0]) is not None and not names.is_part(files[0]) for files in checkpoints
    )
    whole = output_name(str(args.out), checkpoints[0][0])
    outputs = [whole]
    if in_ranks:
        outputs = [names.with_rank(whole, rank) for rank in range(len(checkpoints[0]))]
    inputs = [path for files in checkpoints for path in files]
    check_outputs(outputs, whole, inputs, force=args.force)
    rows = [("checkpoint", "files", "updates")]
    for files in checkpoints:
        with io.well_formed(files[0]):
            updates = config.num_updates(io.load_options(files[0]))
        rows.append((str(files[0]), f"{len(files)}", f"{updates:,}"))
    with (
        step(f"average {count(len(checkpoints), 'checkpoint')}") as current,
        io.well_formed(checkpoints[-1][0]),
    ):
        states = average_ranks(checkpoints) if in_ranks else iter([average_whole(checkpoints)])
        whole.parent.mkdir(exist_ok=True)
        written = io.save_all((path, next(states)) for path in outputs)
        current.detail = str(outputs[0])
    print(format_table(rows))
    print(f"{written:,} bytes in {count(len(outputs), 'file')}, without an optimizer's state")
    return 0


def _chosen(args: argparse.Namespace) -> list[Path]:
    """The checkpoints that are named, or the newest of a folder."""
    from zcode_plugin.checkpoint.average import EPOCHS, UPDATES, newest

    by_epoch = args.num_epoch_checkpoints is not None
    number = args.num_epoch_checkpoints if by_epoch else args.num_update_checkpoints
    folder = args.checkpoints[0]
    if number is None:
        if args.checkpoint_upper_bound is not None or folder.is_dir():
            raise UserError(
                "a folder, and --checkpoint-upper-bound, go with --num-epoch-checkpoints N or "
                "--num-update-checkpoints N: add one"
            )
        return list(args.checkpoints)
    if len(args.checkpoints) > 1 or not folder.is_dir():
        flag = "--num-epoch-checkpoints" if by_epoch else "--num-update-checkpoints"
        raise UserError(f"{flag} chooses from one folder: {args.checkpoints[-1]} is none")
    if number < 1:
        raise UserError(f"{number} checkpoints are too few: give at least 1")
    return newest(folder, EPOCHS if by_epoch else UPDATES, number, args.checkpoint_upper_bound)
