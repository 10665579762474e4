"""`zcode prune`: fewer experts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from zcode_plugin.cli.outputs import add_checkpoint_argument, add_output_arguments, check_output
from zcode_plugin.console import format_table, step
from zcode_plugin.errors import UserError
from zcode_plugin.flags import comma_list

if TYPE_CHECKING:
    from zcode_plugin.checkpoint.gather import Gathered
    from zcode_plugin.checkpoint.prune import Budget, Kept, Scores

CRITERIA = ("utilisation", "gate-weight", "activation-norm", "random")
DESCRIPTION = """Keep some experts of each layer with their rows of the gate: those that most tokens
were sent to (utilisation), that have the largest sum of combine weights (gate-weight) or of combine
weight x norm of the output (activation-norm), as zcode stats found; or random ones."""
EPILOG = """The result is one file without an optimizer's state, which fairseq-generate and
fairseq-train --finetune-from-model load.

example:
  zcode prune model.pt --keep 50% --by random --out half.pt
  zcode stats model.pt data --out stats.json
  zcode prune model.pt --keep 4 --by utilisation --stats stats.json --out 4.pt
  zcode prune model.pt --keep 2 --by activation-norm --stats stats.json \\
    --pairs de-en --across-layers --ratio 3:1 --out de-en.pt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add_checkpoint_argument(parser)
    add("--keep", required=True, metavar="K", help="experts that stay of each layer, or 50%%")
    add("--by", required=True, choices=CRITERIA, help="which experts stay")
    add("--stats", type=Path, metavar="FILE", help="what zcode stats wrote for this checkpoint")
    add("--pairs", metavar="A-B,...", help="go by these pairs or languages alone (default: all)")
    add(
        "--across-layers",
        action="store_true",
        help="keep K on average: the best of all layers together, by their share of their layer",
    )
    add("--ratio", metavar="E:D", help="encoder's layers keep E for each D of the decoder's")
    add("--seed", type=int, default=1, metavar="N", help="of the draw of --by random (default: 1)")
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prune and print which experts stayed."""
    from zcode_plugin.checkpoint import io
    from zcode_plugin.checkpoint.gather import find_files, gather_whole
    from zcode_plugin.checkpoint.prune import choose, prune

    check_output(args.out, find_files(args.checkpoint), force=args.force)
    with io.well_formed(args.checkpoint):
        files, gathered = gather_whole(args.checkpoint)
        _check_prunable(gathered, files[0])
        budget = _budget(args, gathered)
    kept = choose(gathered.experts, _scores(args, gathered), budget)
    before = sum(path.stat().st_size for path in files)
    with step(f"prune {files[0].name}") as current, io.well_formed(args.checkpoint):
        prune(gathered, kept)
        written = io.save(gathered.state, args.out)
        current.detail = str(args.out)
    _report(gathered, kept)
    print(f"{before:,} bytes read, {written:,} written, without an optimizer's state")
    return 0


def _check_prunable(gathered: Gathered, path: Path) -> None:
    from zcode_plugin.checkpoint import config, names

    if not gathered.experts:
        raise UserError(f"{path} has no experts that could be left out")
    gate = config.get(config.section(gathered.state, "model"), "moe_gate", "learned")
    if any(names.gate_key(layer) not in gathered.state["model"] for layer in gathered.experts):
        raise UserError(
            f"{path} has --moe-gate {gate}, which sends each token to a number that depends on "
            "that of all experts: none can be left out"
        )


def _budget(args: argparse.Namespace, gathered: Gathered) -> Budget:
    from zcode_plugin.checkpoint import config
    from zcode_plugin.checkpoint.prune import Budget, parse_keep

    top_k = int(config.get(config.section(gathered.state, "model"), "moe_top_k", 1))
    keep = parse_keep(args.keep, gathered.experts)
    if keep < top_k:
        raise UserError(f"--keep {args.keep} is less than the {top_k} experts of each token")
    return Budget(keep, args.across_layers, _ratio(args.ratio), least=top_k)


def _ratio(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    encoder, colon, decoder = text.partition(":")
    try:
        ratio = float(encoder), float(decoder)
    except ValueError:
        ratio = (0.0, 0.0)
    if not colon or not all(0 < part < float("inf") for part in ratio):
        raise UserError(f"--ratio {text}: give two positive numbers, such as 3:1")
    return ratio


def _scores(args: argparse.Namespace, gathered: Gathered) -> Scores:
    from zcode_plugin.checkpoint.prune import random_scores, scores_of
    from zcode_plugin.checkpoint.statistics import read_statistics

    pairs = comma_list(args.pairs)
    if args.by == "random":
        if args.stats or pairs:
            raise UserError("--by random needs no --stats and no --pairs: leave them out")
        return random_scores(gathered.experts, args.seed)
    if args.stats is None:
        raise UserError(
            f"--by {args.by} needs --stats FILE: gather it with zcode stats {args.checkpoint} DATA"
        )
    return scores_of(read_statistics(args.stats), args.by, pairs)


def _report(gathered: Gathered, kept: Kept) -> None:
    rows = [("layer", "experts", "kept", "numbers before")]
    for layer, chosen in kept.items():
        numbers = ",".join(map(str, chosen))
        shown = numbers if len(numbers) <= 60 else f"{numbers[:57]}..."
        rows.append((layer, f"{gathered.experts[layer]}", f"{len(chosen)}", shown))
    print(format_table(rows))
