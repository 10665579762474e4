"""Size, speed and BLEU of several checkpoints, translated with by stock fairseq-generate.

Rounds go through the files forth and back, so that a machine that slows down slows all of them
down. Tokens per second are fairseq-generate's own count, over all directions of a round; a table
has medians over rounds. BLEU is the mean over directions.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import zcode_plugin
from zcode_plugin.checkpoint import config, io, names
from zcode_plugin.checkpoint.quantise import WEIGHTS
from zcode_plugin.checkpoint.tensors import count_bytes
from zcode_plugin.console import format_table
from zcode_plugin.data.pairs import Pair
from zcode_plugin.evaluation import generation, scores
from zcode_plugin.evaluation.scores import Score
from zcode_plugin.stock.jobs import StockCommand, StockJob

# Stored for each weight of an expert: itself, and the scales of a quantised one.
STORED = (*WEIGHTS, *(name.replace("weight", "scale") for name in WEIGHTS))
TRANSLATED = re.compile(r"Translated \S+ sentences \(([\d,]+) tokens\) in ([\d.]+)s")

Row = dict[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CKPT", help="one file or any rank's, not quantised")
    add("data", type=Path, metavar="DATA", help="folder of binarised data")
    add("--directions", help="as de-en,en-de (default: both of every pair of the split)")
    add("--gen-subset", default="test", help="split of DATA")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=1)
    add("--beam", type=int, default=5)
    add("--max-tokens", type=int, default=4096, help="of a batch")
    add("--batch-size", type=int, default=1000, help="most sentences of a batch")
    add("--remove-bpe", default="sentencepiece", help="fairseq-generate's, for the data's subwords")
    add("--out", type=Path, help="JSON file to write")


def compare(
    args: argparse.Namespace, files: Mapping[str, Path], once: Collection[str] = ()
) -> dict[str, Row]:
    """Figures of each file; those of `once` are translated with in the first round alone."""
    directions = generation.choose_directions(args.directions, args.data, args.gen_subset)
    speeds: dict[str, list[float]] = {name: [] for name in files}
    found: dict[str, dict[Pair, Score]] = {}
    for number, name in alternating(files, args.rounds):
        if number and name in once:
            continue
        speed, found[name] = translate(args, files[name], directions)
        speeds[name].append(speed)
        print(f"round {number + 1} {name:<24}{speed:9.1f} tokens/s", flush=True)
    print(f"BLEU: {next(iter(next(iter(found.values())).values())).bleu_signature}")
    print(
        f"{len(directions)} directions, beam {args.beam}, batches of {args.max_tokens} tokens, "
        f"{args.threads} threads, medians of {args.rounds} rounds"
    )
    return {name: figures(files[name], speeds[name], found[name]) for name in files}


def alternating(names: Iterable[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Rounds go forth and back, so that a machine that slows down slows all of them down."""
    order = list(names)
    for number in range(rounds):
        for name in order[:: -1 if number % 2 else 1]:
            yield number, name


def translate(
    args: argparse.Namespace, checkpoint: Path, directions: Sequence[Pair]
) -> tuple[float, dict[Pair, Score]]:
    """Tokens per second over all directions, and the scores of each."""
    task = generation.task_arguments(config.section(io.load_options(checkpoint), "task"))
    options = ["--cpu", "--gen-subset", args.gen_subset, "--beam", str(args.beam)]
    options += ["--max-tokens", str(args.max_tokens), "--remove-bpe", args.remove_bpe]
    options += ["--batch-size", str(args.batch_size)]
    with tempfile.TemporaryDirectory(prefix="translation-") as folder:
        jobs = [
            StockJob(
                str(direction),
                generation.generate_arguments(
                    args.data, checkpoint, Path(zcode_plugin.__path__[0]), direction, task, options
                ),
                Path(folder, f"{direction}.txt"),
            )
            for direction in directions
        ]
        with StockCommand("fairseq_cli.generate", 1, args.threads) as command:
            results = command.run(jobs)
        tokens = seconds = 0.0
        found: dict[Pair, Score] = {}
        for direction, result in zip(directions, results, strict=True):
            if result.exit_code:
                raise SystemExit(f"{checkpoint}, {direction}: {result.reason}")
            [(count, duration)] = TRANSLATED.findall(result.log)
            tokens, seconds = tokens + int(count.replace(",", "")), seconds + float(duration)
            texts = generation.read_translations(
                result.job.output.read_text(encoding="utf-8"), direction
            )
            found[direction] = scores.score(texts, scores.tokenizer_for(direction.tgt, {}), False)
    return tokens / seconds, found


def figures(path: Path, speeds: Sequence[float], found: Mapping[Pair, Score]) -> Row:
    return {
        "checkpoint_bytes": path.stat().st_size,
        "expert_bytes": count_bytes(_expert_weights(io.load_options(path)["model"])),
        "tokens_per_second": statistics.median(speeds),
        "bleu": statistics.fmean(score.bleu for score in found.values()),
        "chrf": statistics.fmean(score.chrf for score in found.values()),
    }


def _expert_weights(model: Mapping[str, Any]) -> Iterator[Any]:
    for key, value in model.items():
        parts = names.parse_expert_key(key)
        if parts and parts.parameter in STORED:
            yield value


def table(rows: Mapping[str, Row]) -> str:
    """Figures, and how they stand to those of the first."""
    first = next(iter(rows.values()))
    cells = [["experts", "checkpoint bytes", "expert bytes", "tokens/s", "BLEU", "chrF++"]]
    for name, row in rows.items():
        shares = {key: f"({row[key] / first[key]:.2f} x)" for key in row if first[key]}
        cells.append(
            [
                name,
                f"{row['checkpoint_bytes']:,.0f} {shares['checkpoint_bytes']}",
                f"{row['expert_bytes']:,.0f} {shares['expert_bytes']}",
                f"{row['tokens_per_second']:,.0f} {shares['tokens_per_second']}",
                f"{row['bleu']:.2f} ({row['bleu'] - first['bleu']:+.2f})",
                f"{row['chrf']:.2f} ({row['chrf'] - first['chrf']:+.2f})",
            ]
        )
    return format_table(cells)


def write(args: argparse.Namespace, rows: Mapping[str, Row]) -> None:
    """Print the table; and write the figures, where that is asked for."""
    print(table(rows))
    if args.out:
        write_json(args.out, rows)


def write_json(path: Path, rows: Mapping[str, Row]) -> None:
    """Write the figures, with the date and the versions that they are of."""
    versions = {name: version(name) for name in ("fairseq", "torch", "sacrebleu")}
    today = datetime.now(timezone.utc).date().isoformat()
    record = {"date": today, "versions": versions, "rows": rows}
    path.write_text(json.dumps(record, indent=2) + "\n")
