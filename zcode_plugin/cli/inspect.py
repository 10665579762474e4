"""`zcode inspect`: what is in a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zcode_plugin.console import format_table

if TYPE_CHECKING:
    from zcode_plugin.checkpoint.inspect import Contents

DESCRIPTION = """Show what is in a checkpoint of any fairseq model: options, languages, experts,
parameters, dtypes, optimizer. Of rank files any one will do: the whole set is counted."""
EPILOG = """A token's active parameters are all through which it passes in translation.

example:
  zcode inspect checkpoints/checkpoint_last-rank-0.pt
  zcode inspect model.pt --json | python -m json.tool
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CKPT", help="a file, or any rank's, or without a rank")
    add("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Look, and print."""
    import json
    from dataclasses import asdict

    from zcode_plugin.checkpoint import io
    from zcode_plugin.checkpoint.inspect import inspect

    with io.well_formed(args.checkpoint):
        contents = inspect(args.checkpoint)
    if args.json:
        print(json.dumps(asdict(contents), ensure_ascii=False))
        return 0
    rows = [("checkpoint", contents.files[0])]
    rows += [(name, text) for name, text in _described(contents).items() if text]
    print(format_table(rows, left=2))
    print()
    print(format_table(_parameter_rows(contents)))
    return 0


def _described(contents: Contents) -> dict[str, str]:
    """A text for each line; empty where the checkpoint says nothing."""
    optimizer = contents.optimizer
    state = f"state of {optimizer.bytes:,} bytes" if optimizer.state else "without its state"
    return {
        "files": f"{len(contents.files)}",
        "bytes": f"{contents.bytes:,}",
        "updates": f"{contents.updates:,}",
        "architecture": contents.arch or "",
        "task": contents.task or "",
        "objectives": ", ".join(contents.objectives),
        "languages": ", ".join(contents.languages),
        "pairs": ", ".join(contents.pairs),
        "vocabulary": _grouped(contents.vocabulary),
        "experts": _grouped(contents.experts) or "none",
        **{
            f"kept of {layer}": ", ".join(map(str, numbers))
            for layer, numbers in contents.kept_experts.items()
        },
        "experts of a token": "" if contents.top_k is None else f"{contents.top_k}",
        "gate": contents.gate or "",
        "optimizer": ", ".join(filter(None, (optimizer.name, state))),
        "averaged weights": "yes" if contents.ema else "no",
        "ranks": f"{contents.ranks}",
        "expert parallel size": f"{contents.expert_parallel_size}",
    }


def _grouped(numbers: Mapping[str, int]) -> str:
    """`{"a": 4, "b": 4, "c": 8}` -> `4 (a, b), 8 (c)`."""
    groups: dict[int, list[str]] = {}
    for name, number in numbers.items():
        groups.setdefault(number, []).append(name)
    return ", ".join(f"{number:,} ({', '.join(group)})" for number, group in groups.items())


def _parameter_rows(contents: Contents) -> list[tuple[str, str]]:
    parameters = contents.parameters
    numbers = {
        **parameters.parts,
        "total": parameters.total,
        "active per token": parameters.active,
        **{f"as {dtype}": number for dtype, number in parameters.dtypes.items()},
    }
    return [("parameters", "number"), *((name, f"{n:,}") for name, n in numbers.items())]
