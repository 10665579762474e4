"""`zcode merge`: the files of all ranks to one checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from zcode_plugin.checkpoint import names
from zcode_plugin.cli.outputs import check_output
from zcode_plugin.console import count, step
from zcode_plugin.errors import UserError

DESCRIPTION = """Merge the checkpoint files of all ranks (CKPT-rank-0.pt, CKPT-rank-1.pt, ...), or
the shards of a run with --use-sharded-state (CKPT-shard0.pt, CKPT-rank-0-shard0.pt, ...), into
one, which stock fairseq-generate loads in one process."""
EPILOG = """The optimizer's state is left out (zcode reshard keeps it): to train on, give the merged
file to fairseq-train --finetune-from-model.

example:
  zcode merge checkpoints/checkpoint_last-rank-0.pt
  zcode merge checkpoints/checkpoint_best.pt --out best.pt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CKPT", help="any rank's file, or the name without a rank")
    add("--out", type=Path, metavar="FILE", help="file to write (default: CKPT without a rank)")
    add("--force", action="store_true", help="overwrite FILE")


def run(args: argparse.Namespace) -> int:
    """Merge, or say that there is nothing to merge."""
    names.check_no_folder(args.checkpoint)
    files = names.find_rank_files(args.checkpoint)
    if not files and not (names.shard_of(args.checkpoint) is None and args.checkpoint.is_file()):
        files = names.find_shards(args.checkpoint)
    if not files:
        return _nothing_to_merge(args.checkpoint, args.out)
    output = args.out or names.without_rank(names.without_shard(args.checkpoint))
    check_output(output, list(files.values()), force=args.force)
    _merge(files, output)
    return 0


def _nothing_to_merge(checkpoint: Path, output: Path | None) -> int:
    if names.rank_of(checkpoint) is not None or not checkpoint.is_file():
        other = names.with_rank(names.without_rank(checkpoint), 0)
        raise UserError(f"there is no {checkpoint}, nor {other}: name a checkpoint")
    if output is not None:  # which whoever goes on with it would miss
        raise UserError(f"{checkpoint} is one file for all ranks: use it as it is, without --out")
    print(f"{checkpoint} is one file for all ranks: nothing to merge")
    return 0


def _merge(files: dict[int, Path], output: Path) -> None:
    from zcode_plugin.checkpoint import io
    from zcode_plugin.checkpoint.merge import merge

    first = next(iter(files.values()))
    with step(f"merge {count(len(files), 'file')}") as current, io.well_formed(first):
        state, report = merge(files)
        written = io.save(state, output)
        current.detail = str(output)
    experts = sorted(set(report.experts.values()))
    rows = {
        "ranks": f"{report.ranks}",
        "updates": f"{report.updates:,}",
        "MoE layers": f"{len(report.experts)}",
        "experts of a layer": ", ".join(map(str, experts)) or "none",
        "parameters": f"{report.parameters:,}",
        "bytes read": f"{sum(path.stat().st_size for path in files.values()):,}",
        "bytes written": f"{written:,}",
    }
    width = max(map(len, rows.values()))
    for name, value in rows.items():
        print(f"{name:<20}{value:>{width}}")
    print("without the optimizer's state: to train on, use fairseq-train --finetune-from-model")
