"""Runs of fairseq-train for a study, each in a folder of its own.

A run that is finished is not run again, one that was interrupted goes on from its last checkpoint.
Runs go side by side, each on one thread, so that the cores are full and none disturbs another more
than in any other study.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import Any

from zcode_plugin.reporting.logs import TRAIN, TrainingLog, read_logs

SCRIPTS = Path(sysconfig.get_path("scripts"))
USER_DIR = Path(__file__).resolve().parents[2] / "zcode_plugin"
CPU = "--cpu"
# One thread, which keeps the memory it once had: to take that of the logits anew from the system in
# every update costs a tenth of the time.
THREAD = {
    "OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "1", "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}  # fmt: skip
# All runs of all studies: what differs stands in the study.
TASK = (
    "--task", "multitask_multilingual", "--multitask", "mt", "--criterion",
    "multitask_summed_loss",
)  # fmt: skip
# Stock fairseq's own task and criterion know these, too.
STOCK = (
    "--user-dir", str(USER_DIR), "--encoder-langtok", "tgt", "--decoder-langtok",
    "--sampling-method", "temperature", "--sampling-temperature", "2",
    "--label-smoothing", "0.1", "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)",
    "--clip-norm", "1.0", "--lr-scheduler", "polynomial_decay", "--dropout", "0",
    "--max-tokens", "2048", "--max-tokens-valid", "4096", CPU, "--num-workers", "0",
    "--data-buffer-size", "0", "--no-epoch-checkpoints", "--log-format", "json",
    "--validate-interval", "1000", "--keep-interval-updates", "1",
)  # fmt: skip
COMMON = (*STOCK, *TASK)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: of its folder, within the study.
        updates: how long it trains.
        options: of fairseq-train, beyond COMMON.
    """

    name: str
    updates: int
    options: tuple[str, ...]

    @property
    def directions(self) -> str:
        """With commas between them."""
        return self.options[self.options.index("--lang-pairs") + 1]


@dataclass(frozen=True)
class Point:
    """A validation: after how many updates and seconds of training; the loss in bits a target.

    Seconds are updates times the median time of an update.
    """

    updates: int
    seconds: float
    loss: float


class Study:
    """Trains runs on one set of data and reads what came of them.

    Args:
        folder: for the runs.
        data: binarised data.
        jobs: runs at a time.
        gpu: train and translate on one, rather than on CPUs.
    """

    def __init__(self, folder: Path, data: Path, jobs: int, gpu: bool = False):
        self.folder, self.data, self.jobs, self.gpu = folder, data, jobs, gpu
        folder.mkdir(parents=True, exist_ok=True)

    def beside(self, name: str, data: Path) -> Study:
        """A study of other data in the same way, its runs in a folder within this one's."""
        return Study(self.folder / name, data, self.jobs, self.gpu)

    def checkpoint(self, run: Run) -> Path:
        """The last checkpoint of a run."""
        return self.folder / run.name / "checkpoint_last.pt"

    def train(self, runs: Iterable[Run]) -> None:
        """Train those of the runs that are not finished."""
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(self._train, runs))

    def _train(self, run: Run) -> None:
        folder = self.folder / run.name
        folder.mkdir(exist_ok=True)
        line = self.options(run)
        note = folder / "options.json"
        if note.exists() and json.loads(note.read_text()) != line:
            raise SystemExit(f"{folder} holds a run with other options: delete it")
        note.write_text(json.dumps(line))
        if (folder / "finished").exists():
            return
        print(f"training {run.name}, {run.updates} updates", flush=True)
        command = [str(SCRIPTS / "fairseq-train"), str(self.data), *line, "--save-dir", str(folder)]
        call(command, folder / "train.log")
        (folder / "finished").touch()

    def options(self, run: Run) -> list[str]:
        """All of fairseq-train's, but for its data and folder."""
        line = [*COMMON, *length(run.updates), *run.options]
        return [one for one in line if one != CPU] if self.gpu else line

    def results(self, run: Run) -> Path:
        """What `zcode evaluate` wrote of a run."""
        return self.folder / run.name / "results.json"

    def results_of(self, systems: Mapping[str, Sequence[Run]]) -> dict[str, list[Path]]:
        """The same for the runs of every system."""
        return {name: [self.results(run) for run in runs] for name, runs in systems.items()}

    def evaluate(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """Results of `zcode evaluate` for the directions of each run, `jobs` at a time."""

        def evaluate(run: Run) -> dict[str, Any]:
            return self.evaluate_file(self.checkpoint(run), run.directions, self.results(run))

        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(evaluate, runs))

    def evaluate_all(self, systems: Mapping[str, Sequence[Run]]) -> dict[str, list[dict[str, Any]]]:
        """The same for the runs of every system."""
        results = iter(self.evaluate([*chain(*systems.values())]))
        return {name: [*islice(results, len(runs))] for name, runs in systems.items()}

    def evaluate_file(
        self, checkpoint: Path, directions: str, results: Path, *options: str
    ) -> dict[str, Any]:
        """Results of `zcode evaluate`; those that are there are read.

        Args:
            checkpoint: to translate with.
            directions: with commas between them.
            results: file to write.
            options: of zcode evaluate.
        """
        if not results.exists():
            print(f"translating with {checkpoint.parent.name}/{checkpoint.name}", flush=True)
            command = ["evaluate", str(self.data), "--pairs", directions, "--path", str(checkpoint)]
            device = () if self.gpu else ("--", CPU)
            self.zcode(*command, "--out", str(results), *options, *device)
        found: dict[str, Any] = json.loads(results.read_text())
        return found

    def zcode(self, *arguments: str) -> None:
        """Run a zcode command."""
        call([str(SCRIPTS / "zcode"), *arguments], self.folder / "zcode.log")

    def parameters(self, run: Run) -> int:
        """Of the model, experts included; embeddings that are shared count once."""
        text = (self.folder / run.name / "train.log").read_text()
        return int(re.findall(r"num\. shared model params: ([\d,]+)", text)[-1].replace(",", ""))

    def last(self, run: Run, metric: str) -> float:
        """What training logged last."""
        return self._log(run).curve(TRAIN, metric).values[-1]

    def curve(self, run: Run) -> list[Point]:
        """The validations of a run, in the order of updates."""
        log = self._log(run)
        # Time of updates alone, without validation; stock logs that since its last record. What
        # else ran on the machine for a while does not move the median.
        walls = dict(zip(*log.curve(TRAIN, "train_wall"), strict=True))
        starts = [0, *walls]
        seconds = median(
            wall / (end - start) for start, (end, wall) in zip(starts, walls.items(), strict=False)
        )
        losses = zip(*log.curve("valid", "mt_nll_loss"), strict=True)
        # A run that was interrupted after its last save makes one update more.
        return [Point(n, n * seconds, loss) for n, loss in losses if n <= run.updates]

    def _log(self, run: Run) -> TrainingLog:
        return read_log(self.folder / run.name / "train.log")


def length(updates: int) -> Sequence[str]:
    """Options for a training that long; the learning rate is 0 at its end."""
    return "--max-update", str(updates), "--total-num-update", str(updates)


def read_log(path: Path) -> TrainingLog:
    """What fairseq-train logged.

    Raises:
        SystemExit: nothing.
    """
    log = read_logs([path])
    if log is None:
        raise SystemExit(f"{path} holds no record of a training")
    return log


def call(command: Sequence[str], log: Path) -> None:
    """Run a command on one thread, with its output at the end of `log`.

    Raises:
        SystemExit: it failed; with the end of what it said.
    """
    with log.open("a") as file:
        environment = {**os.environ, **THREAD}
        done = subprocess.run(command, stdout=file, stderr=file, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{log}: exit code {done.returncode}\n{log.read_text()[-2000:]}")
