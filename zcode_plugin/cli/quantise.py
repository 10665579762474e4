"""`zcode quantise`: a smaller checkpoint, its expert weights integers of 8 or 4 bits."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zcode_plugin.cli.outputs import add_checkpoint_argument, add_output_arguments, check_output
from zcode_plugin.console import count, format_table, step

if TYPE_CHECKING:
    from zcode_plugin.checkpoint.quantise import Quantisation

DESCRIPTION = """Make the weights of the experts integers of 8 or 4 bits with a float32 scale for
each output channel, for a smaller file that stock fairseq-generate translates with as with any
other, on a CPU too. All other weights stay as they are."""
EPILOG = """The result cannot be trained: keep the checkpoint that it is made of. The optimizer's
state and the averages of --store-ema are left out.

example:
  zcode quantise model.pt --bits 8 --out model8.pt
  zcode quantise checkpoints/checkpoint_best-rank-0.pt --bits 4 --out model4.pt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add_checkpoint_argument(parser)
    parser.add_argument(
        "--bits", type=int, choices=(8, 4), required=True, help="bits of an expert's weight"
    )
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Quantise and print what became of sizes and weights."""
    from zcode_plugin.checkpoint import io
    from zcode_plugin.checkpoint.gather import find_files
    from zcode_plugin.checkpoint.quantise import quantise_checkpoint

    files = find_files(args.checkpoint)
    check_output(args.out, files, force=args.force)
    with step(f"quantise {count(len(files), 'file')} to {args.bits} bits") as current:
        with io.well_formed(args.checkpoint):
            result = quantise_checkpoint(args.checkpoint, args.bits)
        written = io.save(result.state, args.out)
        current.detail = str(args.out)
    print(format_table(_rows(result)))
    print("error: the norm of a matrix's change over its own norm")
    left_out = ["the optimizer's state", *(f"{name} of --store-ema" for name in result.dropped)]
    read = sum(path.stat().st_size for path in files)
    print(f"{read:,} bytes read, {written:,} written, without {' and '.join(left_out)}")
    return 0


def _rows(result: Quantisation) -> list[list[str]]:
    """Part, tensors, bytes, errors: of each layer's experts, all experts, the rest, the model."""
    rows = [["part", "tensors", "bytes before", "bytes after", "mean error", "largest error"]]
    before = after = 0
    errors: list[float] = []
    for layer, report in result.layers.items():
        name = layer.removesuffix(".moe_layer")
        sizes = report.bytes_before, report.bytes_after
        rows.append(_row(name, len(report.errors), *sizes, report.errors))
        before, after = before + sizes[0], after + sizes[1]
        errors += report.errors
    rest = result.other_bytes
    rows.append(_row("expert weights", len(errors), before, after, errors))
    rows.append(_row("all else", result.other_tensors, rest, rest, ()))
    tensors = len(errors) + result.other_tensors
    rows.append(_row("model", tensors, before + rest, after + rest, ()))
    return rows


def _row(part: str, tensors: int, before: int, after: int, errors: Sequence[float]) -> list[str]:
    shown = [sum(errors) / len(errors), max(errors)] if errors else []
    cells = [f"{error:.2%}" for error in shown] or ["", ""]
    return [part, f"{tensors:,}", f"{before:,}", f"{after:,}", *cells]
