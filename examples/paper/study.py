"""The command line that all studies share, their corpus, and the shape of their models."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trainings import SCRIPTS, Study, call

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAIRS = tuple(f"{code}-en" for code in ("cs", "de", "es", "fr", "it", "nl", "pl", "pt"))
# 4 + 2 layers of width 128, networks of 512 (about 2.3 million parameters without experts), every
# other layer with experts: small enough that a training takes less than half an hour of one core.
SHAPE = (
    "--arch", "moe_transformer_tiny", "--encoder-ffn-embed-dim", "512",
    "--decoder-ffn-embed-dim", "512", "--lr", "0.003", "--warmup-updates", "300",
)  # fmt: skip
DENSE = (*SHAPE, "--moe-freq", "0")
MOE = (*SHAPE, "--moe-expert-count", "8", "--moe-gate-loss-wt", "0.05")


def both_ways(pairs: Sequence[str]) -> str:
    """Directions for --lang-pairs: into English, then out of it."""
    back = [pair.split("-") for pair in pairs]
    return ",".join([*pairs, *(f"{target}-{source}" for source, target in back)])


def checks(updates: int, validations: int = 15) -> tuple[str, ...]:
    """Options that validate and save at equal distances; a save is where a run can go on."""
    every = str(updates // validations)
    return (
        "--validate-interval-updates", every, "--log-interval", every,
        "--save-interval-updates", str(updates // 5),
    )  # fmt: skip


def main(name: str, description: str, body: Callable[[Study, argparse.Namespace], None]) -> None:
    """Parse the command line, make the corpus if it is not there, and run a study.

    Args:
        name: of the study, its runs and its results.
        description: for --help.
        body: trains, measures and writes; gets the runs and the arguments.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="short trainings: shows that the script works")
    add("--work", type=Path, default=ROOT / "runs" / "paper", help="for the corpus and the runs")
    add("--out", type=Path, help="for results (default: docs/results, of --quick in --work)")
    add("--jobs", type=int, default=2, help="trainings at a time, one thread each (default: 2)")
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs} must be at least 1")
    runs = "quick" if args.quick else "runs"
    args.out = args.out or (args.work / "quick" if args.quick else ROOT / "docs" / "results")
    args.work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    study = Study(args.work / runs / name, make_data(args.work), args.jobs)
    body(study, args)
    print(f"{name}: {(time.monotonic() - started) / 60:.0f} minutes, results in {args.out}")


def make_data(work: Path) -> Path:
    """The binarised corpus, made if it is not there."""
    log = work / "corpus.log"
    build = [sys.executable, str(HERE / "help_corpus.py"), "--out", str(work / "corpus")]
    prepare = [str(SCRIPTS / "zcode"), "prepare", "--raw", str(work / "corpus" / "raw")]
    prepare += ["--out", str(work / "data"), "--vocab-size", "8000", "--character-coverage", "1"]
    print("corpus and subwords, some minutes the first time", flush=True)
    for command in (build, prepare):
        call(command, log)
    return work / "data"
