"""`zcode reshard`: a checkpoint divided anew over another number of ranks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from zcode_plugin.cli.outputs import add_checkpoint_argument, check_outputs, output_name
from zcode_plugin.console import count, format_table, step
from zcode_plugin.errors import UserError

if TYPE_CHECKING:
    from zcode_plugin.checkpoint.layout import Layout
    from zcode_plugin.checkpoint.reshard import Resharding

DESCRIPTION = """Divide a checkpoint over another number of ranks, more or fewer, or in another
form of parallelism, with its optimizer's state, averaged weights (--store-ema) and place in the
training data: training goes on as if the form had been that from the start. Takes files of ranks,
of slices (--model-parallel-size) and shards (--use-sharded-state); makes the former two."""
EPILOG = """To keep the batches of each update, keep ranks / T x --update-freq.

example:
  zcode reshard checkpoints/checkpoint_last-rank-0.pt --ranks 2 --out two/
  torchrun --nproc-per-node=2 $(which fairseq-train) ... \\
    --expert-parallel-size 2 --save-dir two
  zcode reshard two/checkpoint_last-rank-0.pt --ranks 4 \\
    --model-parallel-size 2 --out slices/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add_checkpoint_argument(parser)
    add(
        "--ranks",
        type=int,
        required=True,
        metavar="N",
        help="ranks that will train on",
    )
    add(
        "--expert-parallel-size",
        type=int,
        metavar="P",
        help="ranks over which experts are spread, a divisor of N / T (default: as before where "
        "there were several groups of ranks and it divides that, otherwise N / T)",
    )
    add(
        "--model-parallel-size",
        type=int,
        default=1,
        metavar="T",
        help="ranks over which each layer is sliced, a divisor of N (default: 1, whole layers)",
    )
    add(
        "--zero-sharding",
        choices=("os", "none"),
        help="whether ranks with different experts will share the optimizer's state between them, "
        "as in training (default: as before)",
    )
    add(
        "--out",
        required=True,
        metavar="DIR|FILE.pt",
        help="folder to write to, made if missing, or name without a rank; one file for all ranks "
        "when P and T are 1",
    )
    add("--force", action="store_true", help="overwrite files")


def run(args: argparse.Namespace) -> int:
    """Reshard and print a table of before and after."""
    from zcode_plugin.checkpoint import io
    from zcode_plugin.checkpoint.gather import find_files
    from zcode_plugin.checkpoint.reshard import plan

    if args.ranks < 1:
        raise UserError(f"--ranks {args.ranks} is too small: give at least 1")
    files = find_files(args.checkpoint, shards_too=True)
    whole = output_name(args.out, files[0])
    with step(f"read {count(len(files), 'file')}") as current, io.well_formed(files[0]):
        resharding = plan(
            files,
            args.ranks,
            args.expert_parallel_size,
            args.zero_sharding,
            args.model_parallel_size,
        )
        current.detail = str(files[0])
    layout = resharding.after
    outputs = layout.paths(whole)
    check_outputs(outputs, whole, files, force=args.force)
    with step(f"write {count(len(outputs), 'file')}") as current, io.well_formed(files[0]):
        whole.parent.mkdir(exist_ok=True)
        written = io.save_all(zip(outputs, resharding.states(), strict=True))
        current.detail = str(outputs[0])
    _print_report(resharding, files, written)
    return 0


def _held(layout: Layout) -> str:
    return "part" if layout.sharded else "whole"


def _print_report(resharding: Resharding, files: list[Path], written: int) -> None:
    from zcode_plugin.checkpoint import config

    before, after = resharding.before, resharding.after
    place, moved = resharding.position_before, resharding.position_after
    state, experts = resharding.gathered.state, sorted(set(resharding.gathered.experts.values()))

    def local(layout: Layout) -> str:
        return ", ".join(str(number // layout.expert_parallel) for number in experts) or "none"

    rows = [
        ("", "before", "after"),
        ("ranks", f"{before.world}", f"{after.world}"),
        ("expert parallel size", f"{before.expert_parallel}", f"{after.expert_parallel}"),
        ("slices of a layer", f"{before.tensor_parallel}", f"{after.tensor_parallel}"),
        ("files", f"{len(files)}", f"{after.files}"),
        ("optimizer's state in a file", *(_held(layout) for layout in (before, after))),
        ("experts of a layer on a rank", local(before), local(after)),
        ("epoch", f"{place.epoch}", f"{moved.epoch}"),
        ("batches of a rank in it", f"{place.batches:,}", f"{moved.batches:,}"),
        ("bytes", f"{sum(path.stat().st_size for path in files):,}", f"{written:,}"),
    ]
    print(format_table(rows))
    print(
        f"{config.num_updates(state):,} updates, {resharding.parameters:,} parameters, "
        f"{count(len(resharding.gathered.experts), 'MoE layer')}"
    )
    if moved.repeated:
        print(
            f"{place.batches:,} batches of {before.data} ranks are no multiple of {after.data}: "
            f"the last {moved.repeated:,} come a second time"
        )
    if not state.get("last_optimizer_state"):
        print(
            "without an optimizer's state, which the input lacks: train on with --reset-optimizer"
        )
