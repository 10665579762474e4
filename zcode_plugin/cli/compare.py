"""`zcode compare`: results of several systems in one table, with tests of significance."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from zcode_plugin.cli.outputs import check_file
from zcode_plugin.errors import UserError
from zcode_plugin.files import write_texts

if TYPE_CHECKING:
    from zcode_plugin.data.pairs import Pair
    from zcode_plugin.evaluation.comparison import Comparison

DESCRIPTION = """Compare results of zcode evaluate: scores side by side and, for each but
the first, which is the baseline, the p-value of sacreBLEU's paired test; in each
direction, and over the sentences of all together. * marks p < 0.05."""
EPILOG = """The seed is sacreBLEU's, 12345; the environment variable SACREBLEU_SEED sets
another. Where all results have COMET scores of one model these are shown, untested.

example:
  zcode evaluate data/ --path a.pt --out a.json
  zcode evaluate data/ --path b.pt --out b.json
  zcode compare a.json b.json
"""
SAMPLES = {"bs": 1000, "ar": 10_000}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add(
        "results", type=Path, nargs="+", metavar="JSON", help="of zcode evaluate --out, two or more"
    )
    add("--names", metavar="NAME,...", help="how to call them (default: as the files)")
    add(
        "--test",
        choices=tuple(SAMPLES),
        default="bs",
        help="bs: bootstrap resampling; ar: approximate randomisation (default: bs)",
    )
    add(
        "--samples",
        type=int,
        metavar="N",
        help="resamples of bs, or trials of ar (default: 1000, or 10000)",
    )
    add("--out", type=Path, metavar="FILE", help="write or replace FILE: the comparison as JSON")


def run(args: argparse.Namespace) -> int:
    """Compare, print and write."""
    from zcode_plugin.evaluation import comparison

    samples = SAMPLES[args.test] if args.samples is None else args.samples
    _check_arguments(args, samples)
    names = _names(args.names, args.results)
    systems = [
        comparison.read_system(path, name) for path, name in zip(args.results, names, strict=True)
    ]
    directions = comparison.common_directions(systems, args.results)
    made = comparison.compare(systems, directions, args.test, samples)
    for metric in made.outcomes:
        print(comparison.comparison_table(made, directions, metric), end="\n\n")
    print(f"baseline: {names[0]}; p: {comparison.TESTS[args.test]}, {samples:,} samples")
    for line in [*comparison.signature_lines(made.signatures), *made.notes]:
        print(line)
    left_out = sorted({str(d) for system in systems for d in system.texts} - set(made.sentences))
    if left_out:
        print(f"left out, as not all results have them: {', '.join(left_out)}")
    if args.out is not None:
        _write_json(args, made, directions, samples)
        print(f"comparison: {args.out}")
    return 0


def _check_arguments(args: argparse.Namespace, samples: int) -> None:
    if len(args.results) < 2:
        raise UserError("give two results or more: the first is the baseline")
    if samples < 1:
        raise UserError(f"--samples {samples} must be at least 1")
    seed = os.environ.get("SACREBLEU_SEED", "12345")
    # Of 0 sacreBLEU makes no seed.
    if seed.lower() != "none" and not (seed.isascii() and seed.isdecimal() and int(seed) > 0):
        raise UserError(f"SACREBLEU_SEED={seed}: give a whole number above 0, or none")
    if args.out is not None:
        check_file(args.out, args.results)


def _names(text: str | None, paths: Sequence[Path]) -> list[str]:
    """Those that are given, else the names of the files, or their paths where names are alike."""
    if text is not None:
        names = text.split(",")
        if len(names) != len(paths) or len(set(names)) != len(names):
            raise UserError(f"--names {text}: give {len(paths)} different names")
        return names
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]


def _write_json(
    args: argparse.Namespace, made: Comparison, directions: Sequence[Pair], samples: int
) -> None:
    from zcode_plugin.evaluation.comparison import TESTS, mean_scores

    record = {
        "format": 1,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "baseline": made.systems[0],
        "systems": dict(zip(made.systems, map(str, args.results), strict=True)),
        "test": TESTS[args.test],
        "samples": samples,
        "sacrebleu": version("sacrebleu"),
        "metrics": {
            metric: {
                "scores": {
                    name: {
                        "sentences": made.sentences[name],
                        "signature": made.signatures.get(metric, {}).get(name),
                        "systems": {
                            system: asdict(outcome)
                            for system, outcome in zip(made.systems, entries, strict=True)
                        },
                    }
                    for name, entries in outcomes.items()
                },
                "means": {
                    group: dict(zip(made.systems, means, strict=True))
                    for group, means in mean_scores(made, directions, metric).items()
                },
            }
            for metric, outcomes in made.outcomes.items()
        },
        "notes": made.notes,
    }
    write_texts({args.out: json.dumps(record, indent=2, ensure_ascii=False) + "\n"})
