"""`zcode reshard`: a checkpoint divided anew over another number of ranks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from zcode_plugin.checkpoint import names
from zcode_plugin.cli.console import count, format_table, step
from zcode_plugin.errors import UserError

if TYPE_CHECKING:
    from zcode_plugin.checkpoint.reshard import Layout, Resharding

DESCRIPTION = """Divide a checkpoint over another number of ranks, more or fewer, with its
optimizer's state, averaged weights (--store-ema) and place in the training data: training
goes on as if the number had been that from the start."""
EPILOG = """To keep the batches of each update, keep ranks x --update-freq.

example:
  zcode reshard checkpoints/checkpoint_last-rank-0.pt --ranks 2 --out two/
  torchrun --nproc-per-node=2 $(which fairseq-train) ... --expert-parallel-size 2 --save-dir two
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add(
        "checkpoint",
        type=Path,
        metavar="CKPT",
        help="one file for all ranks, or any rank's file, or the name without a rank",
    )
    add(
        "--ranks",
        type=int,
        required=True,
        metavar="N",
        help="ranks that will train on (their number, not that of machines)",
    )
    add(
        "--expert-parallel-size",
        type=int,
        metavar="P",
        help="ranks over which experts are spread, a divisor of N (default: as before where there "
        "were several groups of ranks and it divides N, otherwise N)",
    )
    add(
        "--out",
        required=True,
        metavar="DIR|FILE.pt",
        help="folder to write to, made if missing, or name without a rank; one file for all ranks "
        "when P is 1",
    )
    add("--force", action="store_true", help="overwrite files")


def run(args: argparse.Namespace) -> int:
    """Reshard and print a table of before and after."""
    from zcode_plugin.checkpoint import io
    from zcode_plugin.checkpoint.gather import find_files
    from zcode_plugin.checkpoint.reshard import plan

    if args.ranks < 1:
        raise UserError(f"--ranks {args.ranks} is too small: give at least 1")
    files = find_files(args.checkpoint)
    whole = output_name(args.out, files[0])
    with step(f"read {count(len(files), 'file')}") as current:
        resharding = plan(files, args.ranks, args.expert_parallel_size)
        current.detail = str(files[0])
    layout = resharding.after
    outputs = [layout.path(whole, rank) for rank in range(layout.files)]
    check_outputs(outputs, whole, files, force=args.force)
    with step(f"write {count(len(outputs), 'file')}") as current:
        whole.parent.mkdir(exist_ok=True)
        written = io.save_all(zip(outputs, resharding.states(), strict=True))
        current.detail = str(outputs[0])
    _print_report(resharding, sum(path.stat().st_size for path in files), written)
    return 0


def output_name(out: str, first: Path) -> Path:
    """The name without a rank: `--out` itself, or the input's name in that folder.

    Raises:
        UserError: there is no folder in which to write.
    """
    path = Path(out)
    if path.suffix != ".pt" or out.endswith("/") or path.is_dir():
        path = path / names.without_rank(first).name
    elif names.rank_of(path) is not None:
        raise UserError(f"--out {path}: give the name without -rank-{names.rank_of(path)}")
    if not path.parent.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {path.parent.parent}; make it first")
    return path


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


def _print_report(resharding: Resharding, read: int, written: int) -> None:
    from zcode_plugin.checkpoint import config

    before, after = resharding.before, resharding.after
    place, moved = resharding.position_before, resharding.position_after
    state, experts = resharding.gathered.state, sorted(set(resharding.gathered.experts.values()))

    def local(layout: Layout) -> str:
        return ", ".join(str(number // layout.parallel) for number in experts) or "none"

    rows = [
        ("", "before", "after"),
        ("ranks", f"{before.world}", f"{after.world}"),
        ("expert parallel size", f"{before.parallel}", f"{after.parallel}"),
        ("files", f"{before.files}", f"{after.files}"),
        ("experts of a layer on a rank", local(before), local(after)),
        ("epoch", f"{place.epoch}", f"{moved.epoch}"),
        ("batches of a rank in it", f"{place.batches:,}", f"{moved.batches:,}"),
        ("bytes", f"{read:,}", f"{written:,}"),
    ]
    print(format_table(rows))
    print(
        f"{config.num_updates(state):,} updates, {resharding.parameters:,} parameters, "
        f"{count(len(resharding.gathered.experts), 'MoE layer')}"
    )
    if moved.repeated:
        print(
            f"{place.batches:,} batches of {before.world} ranks are no multiple of {after.world}: "
            f"the last {moved.repeated:,} come a second time"
        )
    if not resharding.gathered.moments:
        print(
            "without an optimizer's state, which the input lacks: train on with --reset-optimizer"
        )
