"""Translates directions with stock fairseq-generate, some at a time."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from zcode_plugin.data.pairs import Pair
from zcode_plugin.errors import UserError
from zcode_plugin.evaluation import generation
from zcode_plugin.evaluation.generation import Translations
from zcode_plugin.stock.jobs import StockCommand, StockJob, StockResult, available_cores


def translate_all(
    calls: Mapping[Pair, tuple[str, ...]], jobs: int, kept: Path | None
) -> tuple[dict[Pair, Translations], list[str]]:
    """Translations of the directions, and of each that failed why, on one line.

    Args:
        calls: arguments of fairseq-generate.
        jobs: directions at a time.
        kept: folder that gets what fairseq-generate prints, as soon as a direction is done.

    Raises:
        UserError: all failed.
    """
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)

    def report(result: StockResult) -> None:
        how = "translated" if result.exit_code == 0 else "failed"
        print(f"{result.job.name} {how} ({result.seconds:.1f} s)", flush=True)
        if kept is not None:
            shutil.copy(result.job.output, kept)

    with tempfile.TemporaryDirectory(prefix="zcode-evaluate-") as folder:
        stock_jobs = [
            StockJob(str(direction), call, Path(folder, f"{direction}.txt"))
            for direction, call in calls.items()
        ]
        threads = max(1, available_cores() // jobs)
        with StockCommand("fairseq_cli.generate", jobs, threads) as command:
            results = command.run(stock_jobs, report)
        return _read_all(dict(zip(calls, results, strict=True)))


def by_hand(arguments: tuple[str, ...]) -> str:
    """The command that does it again."""
    return shlex.join(["fairseq-generate", *arguments])


def _read_all(
    results: Mapping[Pair, StockResult],
) -> tuple[dict[Pair, Translations], list[str]]:
    """What there is of hours of translation is kept, whatever became of a single direction."""
    texts, failures = {}, []
    for direction, result in results.items():
        try:
            texts[direction] = _read(result, direction)
        except UserError as error:
            failures.append(str(error))
    if not texts:
        raise UserError(failures[0])
    return texts, failures


def _read(result: StockResult, direction: Pair) -> Translations:
    if result.exit_code != 0:
        raise UserError(
            f"fairseq-generate failed for {direction}, {result.reason}; by hand: "
            f"{by_hand(result.job.arguments)}"
        )
    with result.job.output.open(encoding="utf-8", newline="\n") as file:
        return generation.read_translations(file.read(), direction)
