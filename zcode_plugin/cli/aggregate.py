"""`zcode aggregate`: several models to one with all their experts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from zcode_plugin.cli.outputs import add_output_arguments, check_output
from zcode_plugin.console import count, format_table, step
from zcode_plugin.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zcode_plugin.checkpoint.aggregate import GateScale
    from zcode_plugin.checkpoint.gather import Gathered

DESCRIPTION = """Aggregation of experts (AoE): the experts of all models, their gates one after the
other, and the mean of everything else."""
EPILOG = """A gate over more experts is less certain, and what a token gets from its experts shrinks
with it: unless --gate-scale says otherwise the gate is scaled so that it is as certain as before.
Then re-fit the gate alone for some hundred updates:

  fairseq-train ... --finetune-from-model M.pt --freeze-except gate

example:
  zcode aggregate a.pt b.pt --out M.pt
  zcode aggregate a.pt b.pt --weights 1,0 --gate-scale 1 --out M.pt
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
        help="two or more: files, or any rank's, or without a rank",
    )
    add("--weights", metavar="W,...", help="weights of the models in the mean (default: all alike)")
    add("--gate-scale", default="auto", metavar="F", help="factor of all gates (default: auto)")
    add("--top-k", type=int, metavar="K", help="experts of a token (default: as they have)")
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Aggregate and print what the gates became."""
    from zcode_plugin.checkpoint import io
    from zcode_plugin.checkpoint.gather import find_files, gather_whole
    from zcode_plugin.checkpoint.tensors import count_elements

    if len(args.checkpoints) < 2:
        raise UserError("give two checkpoints or more; one may stand there twice")
    coefficients = _coefficients(args.weights, len(args.checkpoints))
    scale = None if args.gate_scale == "auto" else _number("--gate-scale", args.gate_scale)
    inputs = [path for name in args.checkpoints for path in find_files(name)]
    check_output(args.out, inputs, force=args.force)
    models = []
    for path in args.checkpoints:
        with io.well_formed(path):
            models.append(gather_whole(path)[1])
    # Not before a checkpoint is read: that imports fairseq without its warnings.
    from zcode_plugin.checkpoint.aggregate import aggregate

    with (
        step(f"aggregate {count(len(models), 'checkpoint')}") as current,
        io.well_formed(args.checkpoints[-1]),
    ):
        state, scales = aggregate(
            models,
            args.checkpoints,
            coefficients=coefficients,
            gate_scale=scale,
            top_k=args.top_k,
        )
        written = io.save(state, args.out)
        current.detail = str(args.out)
    _report(models, scales)
    parameters = count_elements(state["model"].values())
    print(f"{parameters:,} parameters, {written:,} bytes, without an optimizer's state")
    return 0


def _coefficients(text: str | None, models: int) -> list[float]:
    if text is None:
        return [1 / models] * models
    parts = text.split(",")
    numbers = [_number("--weights", part, least=0) for part in parts]
    if len(numbers) != models or not sum(numbers):
        raise UserError(f"--weights {text}: give {models} numbers, not all 0")
    return [number / sum(numbers) for number in numbers]


def _number(flag: str, text: str, least: float = 1e-9) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not least <= number < float("inf"):
        bound = "a number above 0" if least else "0 or more"
        raise UserError(f"{flag} {text}: give {bound}")
    return number


def _report(models: Sequence[Gathered], scales: Mapping[str, GateScale]) -> None:
    rows = [("layer", "experts", "gate x", "top-k before", "joined", "scaled")]
    for layer, scale in scales.items():
        counts = [model.experts[layer] for model in models]
        rows.append(
            (
                layer,
                f"{'+'.join(map(str, counts))}={sum(counts)}",
                f"{scale.factor:.3f}",
                f"{scale.before:.3f}",
                f"{scale.joined:.3f}",
                f"{scale.after:.3f}",
            )
        )
    print(format_table(rows))
    print("top-k: mean probability of a token's chosen experts, on normalised random inputs")
