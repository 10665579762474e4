"""Size, speed and BLEU of a checkpoint with experts of float32, int8 and int4.

Each is a file that stock fairseq-generate translates a test set with, as a process of its own:

    python benchmarks/quantisation.py model.pt data --directions de-en,en-de --rounds 5

Rounds go through the files forth and back, so that a machine that slows down slows all of them
down. Tokens per second are fairseq-generate's own count, over all directions of a round; the
table has medians over rounds. BLEU is the mean over directions. The float32 file is CKPT merged,
without the optimizer's state and EMA, as the others are.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import zcode_plugin
from zcode_plugin.checkpoint import config, io, names
from zcode_plugin.checkpoint.gather import WEIGHTS_IN_EXTRA_STATE, gather_whole
from zcode_plugin.checkpoint.quantise import WEIGHTS, quantise_checkpoint
from zcode_plugin.checkpoint.tensors import count_bytes
from zcode_plugin.cli.console import format_table
from zcode_plugin.cli.evaluation import generation, scores
from zcode_plugin.cli.evaluation.generation import Direction
from zcode_plugin.cli.evaluation.scores import Score

SCRIPTS = Path(sysconfig.get_path("scripts"))
BITS = {"float32": config.FLOAT_BITS, "int8": 8, "int4": 4}
# Stored for each weight of an expert: itself, and the scales of a quantised one.
STORED = (*WEIGHTS, *(name.replace("weight", "scale") for name in WEIGHTS))
TRANSLATED = re.compile(r"Translated \S+ sentences \(([\d,]+) tokens\) in ([\d.]+)s")


def main() -> None:
    args = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="quantisation-") as folder:
        files = {name: Path(folder, f"{name}.pt") for name in BITS}
        sizes = {name: write(args.checkpoint, BITS[name], path) for name, path in files.items()}
        directions = generation.choose_directions(args.directions, args.data, args.gen_subset)
        speeds: dict[str, list[float]] = {name: [] for name in files}
        bleu: dict[str, dict[Direction, Score]] = {}
        for number in range(args.rounds):
            for name in list(files)[:: -1 if number % 2 else 1]:
                speed, bleu[name] = translate(args, files[name], directions)
                speeds[name].append(speed)
                print(f"round {number + 1} {name:<8}{speed:9.1f} tokens/s", flush=True)
    rows = {name: figures(sizes[name], speeds[name], bleu[name]) for name in files}
    print(table(rows))
    print(f"BLEU: {next(iter(bleu['float32'].values())).bleu_signature}")
    print(
        f"{len(directions)} directions, beam {args.beam}, batches of {args.max_tokens} tokens, "
        f"{args.threads} threads, medians of {args.rounds} rounds"
    )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CKPT", help="one file or any rank's, not quantised")
    add("data", type=Path, metavar="DATA", help="folder of binarised data")
    add("--directions", help="as de-en,en-de (default: both of every pair of the split)")
    add("--gen-subset", default="test", help="split of DATA")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=1)
    add("--beam", type=int, default=5)
    add("--max-tokens", type=int, default=4096, help="of a batch")
    add("--remove-bpe", default="sentencepiece", help="fairseq-generate's, for the data's subwords")
    add("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


def write(checkpoint: Path, bits: int, path: Path) -> tuple[int, int]:
    """Write the file of so many bits; its bytes and those of its experts' weights."""
    if bits == config.FLOAT_BITS:
        state = gather_whole(checkpoint)[1].state
        for name in WEIGHTS_IN_EXTRA_STATE:
            (state.get("extra_state") or {}).pop(name, None)
    else:
        state = quantise_checkpoint(checkpoint, bits).state
    return io.save(state, path), count_bytes(_expert_weights(state["model"]))


def _expert_weights(model: Mapping[str, Any]) -> Iterator[Any]:
    for key, value in model.items():
        parts = names.parse_expert_key(key)
        if parts and parts.parameter in STORED:
            yield value


def translate(
    args: argparse.Namespace, checkpoint: Path, directions: list[Direction]
) -> tuple[float, dict[Direction, Score]]:
    """Tokens per second over all directions, and the scores of each."""
    task = generation.task_arguments(config.section(io.load_options(checkpoint), "task"))
    options = ["--cpu", "--gen-subset", args.gen_subset, "--beam", str(args.beam)]
    options += ["--max-tokens", str(args.max_tokens), "--remove-bpe", args.remove_bpe]
    tokens = seconds = 0.0
    found: dict[Direction, Score] = {}
    for direction in directions:
        call = generation.generate_arguments(
            args.data, checkpoint, Path(zcode_plugin.__path__[0]), direction, task, options
        )
        output = generate(call, args.threads)
        [(count, duration)] = TRANSLATED.findall(output)
        tokens, seconds = tokens + int(count.replace(",", "")), seconds + float(duration)
        texts = generation.read_translations(output, direction)
        found[direction] = scores.score(texts, scores.tokenizer_for(direction.tgt, {}), False)
    return tokens / seconds, found


def generate(arguments: tuple[str, ...], threads: int) -> str:
    """What stock fairseq-generate prints and logs."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUTF8": "1"}
    ended = subprocess.run(
        [str(SCRIPTS / "fairseq-generate"), *arguments],
        capture_output=True,
        encoding="utf-8",
        env=environment,
        check=False,
    )
    if ended.returncode:
        raise SystemExit(ended.stderr[-3000:])
    return ended.stdout + "\n" + ended.stderr


def figures(
    sizes: tuple[int, int], speeds: list[float], bleu: Mapping[Direction, Score]
) -> dict[str, float]:
    return {
        "checkpoint_bytes": sizes[0],
        "expert_bytes": sizes[1],
        "tokens_per_second": statistics.median(speeds),
        "bleu": statistics.fmean(score.bleu for score in bleu.values()),
    }


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Figures, and how they stand to those of float32."""
    first = rows["float32"]
    cells = [["experts", "checkpoint bytes", "expert bytes", "tokens/s", "BLEU"]]
    for name, row in rows.items():
        shares = {key: f"({row[key] / first[key]:.2f} x)" for key in row if first[key]}
        cells.append(
            [
                name,
                f"{row['checkpoint_bytes']:,} {shares['checkpoint_bytes']}",
                f"{row['expert_bytes']:,} {shares['expert_bytes']}",
                f"{row['tokens_per_second']:,.1f} {shares['tokens_per_second']}",
                f"{row['bleu']:.2f} ({row['bleu'] - first['bleu']:+.2f})",
            ]
        )
    return format_table(cells)


if __name__ == "__main__":
    main()
