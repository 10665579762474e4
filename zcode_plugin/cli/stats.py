"""`zcode stats`: what the experts of a checkpoint do on data."""

from __future__ import annotations

import argparse
from pathlib import Path

from zcode_plugin.cli.outputs import add_checkpoint_argument, check_file, check_outputs
from zcode_plugin.console import count, format_table, quiet_libraries, step
from zcode_plugin.data.pairs import Pair
from zcode_plugin.errors import UserError
from zcode_plugin.files import write_texts
from zcode_plugin.flags import comma_list
from zcode_plugin.stock.jobs import check_no_colon

DESCRIPTION = """Run a checkpoint over a split of binarised data, with its references, and add up
for each layer, objective, pair and expert: tokens sent to the expert (load), the sum of their
combine weights (weight), and the sum of combine weight x norm of the expert's output (norm)."""
EPILOG = """Writes OUT.json, which zcode prune reads, and OUT.csv beside it.

example:
  zcode stats model.pt data --out stats.json
  zcode stats model.pt data --pairs de-en --objectives mt --out de.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add_checkpoint_argument(parser)
    add("data", type=Path, metavar="DATA", help="folder of binarised data")
    add("--out", type=Path, required=True, metavar="OUT.json", help="file to write")
    add("--gen-subset", default="valid", metavar="SPLIT", help="split of DATA (default: valid)")
    add("--pairs", metavar="A-B,...", help="directions of mt (default: those of the training)")
    add("--objectives", metavar="NAME,...", help="objectives (default: those of the training)")
    add(
        "--max-tokens",
        type=int,
        default=4000,
        metavar="N",
        help="tokens of a batch (default: 4000)",
    )
    add(
        "--capacity-factor",
        type=float,
        default=0.0,
        metavar="F",
        help="drop tokens beyond the capacity that this factor gives (default: 0, never)",
    )
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--force", action="store_true", help="overwrite files")


def run(args: argparse.Namespace) -> int:
    """Gather, write and print a summary."""
    from zcode_plugin.checkpoint import io
    from zcode_plugin.checkpoint.gather import gather_whole
    from zcode_plugin.evaluation.running import Selection, measure

    if args.out.suffix != ".json":
        raise UserError(f"--out {args.out}: the name must end in .json")
    outputs = [args.out, args.out.with_suffix(".csv")]
    check_outputs(outputs, args.out, [], force=args.force)
    check_file(args.out)
    if not args.data.is_dir():
        raise UserError(f"there is no folder {args.data}")
    check_no_colon(args.data)
    if args.max_tokens < 1:
        raise UserError(f"--max-tokens {args.max_tokens} is too small")
    if args.capacity_factor < 0:
        raise UserError(f"--capacity-factor {args.capacity_factor} must not be negative")
    for pair in comma_list(args.pairs):
        Pair.parse(pair, "--pairs")
    with io.well_formed(args.checkpoint):
        files, gathered = gather_whole(args.checkpoint)
    selection = Selection(
        args.data,
        args.gen_subset,
        comma_list(args.pairs),
        comma_list(args.objectives),
        args.max_tokens,
        args.capacity_factor,
        args.cpu,
    )
    with step(f"run {files[0].name} over {args.data} ({args.gen_subset})") as current:
        with quiet_libraries():
            statistics = measure(gathered, str(files[0]), selection)
        current.detail = count(len(statistics.rows), "row")
    write_texts(dict(zip(outputs, (statistics.to_json(), statistics.to_csv()), strict=True)))
    rows = [["layer", "tokens", "experts", "busiest", "idlest", "dropped"]]
    for load in statistics.layers():
        shares = (f"{100 * share:.1f}%" for share in (load.busiest, load.idlest, load.dropped))
        rows.append([load.layer, f"{load.tokens:,}", f"{load.experts}", *shares])
    print(format_table(rows))
    print(f"written: {outputs[0]}, {outputs[1]}")
    return 0
