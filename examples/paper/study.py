"""What all studies share: their command line, their corpus, the shape and length of their runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from records import Records
from results import Report
from results import write as write_report
from trainings import SCRIPTS, Run, Study, call

from zcode_plugin.console import quiet_libraries

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAIRS = tuple(f"{code}-en" for code in ("cs", "de", "es", "fr", "it", "nl", "pl", "pt"))
RATE = "0.002"  # with 0.004 dense and MoE models lose two BLEU: learning_rate.py
# 4 + 2 layers of width 128, networks of 512, 1.8 million parameters without experts: small enough
# that two trainings side by side take about forty minutes.
SHAPE = (
    "--arch", "moe_transformer_tiny", "--encoder-ffn-embed-dim", "512",
    "--decoder-ffn-embed-dim", "512", "--lr", RATE, "--warmup-updates", "300",
)  # fmt: skip
DENSE = (*SHAPE, "--moe-freq", "0")
# Every other layer of the encoder has experts. In the decoder they cost BLEU: see main_table.py.
EXPERTS = ("--decoder-moe-freq", "0", "--moe-gate-loss-wt", "0.01", "--moe-capacity-factor", "2")
GATE = (*EXPERTS, "--moe-gate-sees-token")  # gates.py shows what that is worth
EIGHT = (*SHAPE, *EXPERTS, "--moe-expert-count", "8")
MOE = (*EIGHT, "--moe-gate-sees-token")
RANDOM = (*EIGHT, "--moe-gate", "random")

T = TypeVar("T")


@dataclass(frozen=True)
class Scale:
    """How long a study is: in full, or as short as shows that it works.

    Attributes:
        quick: the latter.
    """

    quick: bool

    def pick(self, full: T, quick: T) -> T:
        """What belongs to this scale."""
        return quick if self.quick else full

    @property
    def updates(self) -> int:
        """Of a multilingual model."""
        return self.pick(5000, 40)

    @property
    def pairs(self) -> tuple[str, ...]:
        """The languages, each with English."""
        return self.pick(PAIRS, PAIRS[:1])

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.pick((1, 2, 3), (1,))

    def run(
        self,
        name: str,
        options: Sequence[str],
        *,
        seed: int = 1,
        updates: int | None = None,
        validations: int | None = None,
        directions: Sequence[str] | None = None,
    ) -> Run:
        """A run, by default with all directions; studies that ask for the same run share it.

        Args:
            name: of the model; the run's is NAME-SEED.
            options: of the model and its training.
            seed: of the model and of the order of the data.
            updates: instead of `updates`.
            validations: instead of ten; each costs as much time as fifty updates or more.
            directions: instead of both of each of `pairs`.
        """
        updates = updates or self.updates
        # Validations come at equal distances, where there is a record of the time, too; a save is
        # where an interrupted run goes on.
        every = max(1, updates // (validations or self.pick(10, 4)))
        line = (
            "--validate-interval-updates", str(every), "--log-interval", str(every),
            "--save-interval-updates", str(self.pick(2, 1) * every), *options, "--seed", str(seed),
            "--lang-pairs", ",".join(directions or both_ways(self.pairs)),
        )  # fmt: skip
        return Run(f"{name}-{seed}", updates, line)

    def dense(self, seed: int = 1) -> Run:
        """The dense model of the main table."""
        return self.run("dense", DENSE, seed=seed)

    def moe(self, seed: int = 1) -> Run:
        """Its twin with 8 experts."""
        return self.run("moe", MOE, seed=seed)


def both_ways(pairs: Sequence[str]) -> list[str]:
    """Directions of pairs: into English, then out of it."""
    back = [pair.split("-") for pair in pairs]
    return [*pairs, *(f"{target}-{source}" for source, target in back)]


def main(name: str, description: str, body: Callable[[Study, Scale], Report]) -> None:
    """Parse the command line, make the corpus if it is not there, run a study and write it down.

    Args:
        name: of the study and its results.
        description: its title, an empty line, and what it asks and how.
        body: trains, measures and says what was found.
    """
    args = parse(make_parser(description))
    carry_out(args, name, description, lambda study, scale, out: body(study, scale))


def main_with_records(
    name: str, description: str, body: Callable[[Records, Scale], Report]
) -> None:
    """`main` for a study that needs of its runs no more than their records."""
    parser = make_parser(description)
    parser.add_argument(
        "--recorded", action="store_true",
        help="train nothing: tables of the runs whose records lie in OUT/records",
    )  # fmt: skip
    args = parse(parser)

    def of_records(study: Study, scale: Scale, out: Path) -> Report:
        return body(Records(study, out / "records", makes=not args.recorded), scale)

    carry_out(args, name, description, of_records)


def make_parser(description: str) -> argparse.ArgumentParser:
    """The command line of all studies."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="short trainings: shows that the script works")
    add("--work", type=Path, default=ROOT / "runs" / "paper", help="for the corpus and the runs")
    add("--out", type=Path, help="for results (default: docs/results, of --quick in --work)")
    add("--jobs", type=int, default=2, help="trainings at a time, one thread each (default: 2)")
    add("--gpu", action="store_true", help="train and score on a GPU; speeds are a CPU's anyhow")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Arguments that make sense; others are told in one line, exit code 2."""
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs} must be at least 1")
    if args.gpu and not torch.cuda.is_available():
        parser.error("--gpu: torch finds none; leave it out")
    return args


def carry_out(
    args: argparse.Namespace,
    name: str,
    description: str,
    body: Callable[[Study, Scale, Path], Report],
) -> None:
    """Run a study; its body is told the folder of results, too."""
    scale = Scale(args.quick)
    folder = args.work / scale.pick("full", "quick")
    out = args.out or scale.pick(ROOT / "docs" / "results", folder / "results")
    args.work.mkdir(parents=True, exist_ok=True)
    study = Study(folder / "runs", make_data(args.work), args.jobs, args.gpu)
    with quiet_libraries():
        report = body(study, scale, out)
    write_report(out, name, description, report, quick=args.quick, gpu=args.gpu)
    print(f"{name}: results in {out}")


def make_data(work: Path) -> Path:
    """The binarised corpus, made if it is not there."""
    log = work / "corpus.log"
    build = [sys.executable, str(HERE / "help_corpus.py"), "--out", str(work / "corpus")]
    print("corpus and subwords, some minutes the first time", flush=True)
    call(build, log)
    own = ("--vocab-size", "4000", "--character-coverage", "1")
    prepare(work / "corpus" / "raw", work / "data", log, *own)
    return work / "data"


def prepare(raw: Path, data: Path, log: Path, *options: str) -> None:
    """Run `zcode prepare`, which does nothing where its product is there."""
    command = [str(SCRIPTS / "zcode"), "prepare", "--raw", str(raw), "--out", str(data)]
    call([*command, *options], log)
