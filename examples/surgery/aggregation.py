"""Aggregation of experts (AoE) against other ways to 8 experts, on the corpus of `make demo`.

    python examples/surgery/aggregation.py runs/demo/data runs/aggregation

A model with 4 experts is trained a little (trunk) and goes on twice, with the data in different
orders (a, b). `zcode aggregate` makes one with 8 experts of the two, whose gate is then re-fitted
alone, and which trains on. Beside it: the same with every expert of `a` twice, `a` itself for as
many updates, and a model with 8 experts from scratch for as many updates as all of these took
together. Validation losses are plotted over the updates that went into a model, those of both
parents included.

Steps whose product is there are skipped. Writes results.json and aggregation.png (needs
matplotlib: `pip install matplotlib`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from zcode_plugin.cli.console import format_table

SCRIPTS = Path(sysconfig.get_path("scripts"))
OPTIONS = (
    "--user-dir", "zcode_plugin", "--task", "multitask_multilingual", "--multitask", "mt",
    "--encoder-langtok", "tgt", "--decoder-langtok", "--sampling-method", "temperature",
    "--sampling-temperature", "5", "--arch", "moe_transformer_tiny", "--dropout", "0",
    "--moe-capacity-factor", "1.25", "--criterion", "multitask_summed_loss",
    "--label-smoothing", "0.1", "--moe-gate-loss-wt", "0.05", "--optimizer", "adam",
    "--adam-betas", "(0.9, 0.98)", "--clip-norm", "1.0", "--lr-scheduler", "inverse_sqrt",
    "--lang-pairs", "es-en,it-en,nl-en,sv-en,en-es,en-it,en-nl,en-sv", "--max-tokens", "1024",
    "--max-tokens-valid", "4096", "--cpu", "--num-workers", "0",
    "--data-buffer-size", "0", "--no-epoch-checkpoints", "--log-format", "json",
    "--log-interval", "50", "--no-save-optimizer-state",
)  # fmt: skip
METRIC = "valid_mt_nll_loss"


@dataclass(frozen=True)
class Lengths:
    """Updates of each stage; validation comes every `interval` of them."""

    trunk: int = 150
    parent: int = 200
    refit: int = 60
    on: int = 240
    interval: int = 60

    @property
    def scratch(self) -> int:
        return self.trunk + 2 * self.parent + self.refit + self.on


class Study:
    """The runs, each in a folder of its own.

    Args:
        data: binarised data.
        folder: for the runs.
        lengths: how long they are.
    """

    def __init__(self, data: Path, folder: Path, lengths: Lengths):
        self.data, self.folder, self.lengths = data, folder, lengths
        folder.mkdir(parents=True, exist_ok=True)

    def train(self, name: str, updates: int, *options: object) -> Path:
        """A run of fairseq-train, unless it is finished; its last checkpoint."""
        save_dir = self.folder / name
        last, log = save_dir / "checkpoint_last.pt", self.folder / f"{name}.log"
        if (save_dir / "finished").exists():
            return last
        shutil.rmtree(save_dir, ignore_errors=True)  # of a run that was interrupted
        every = str(self.lengths.interval)
        line = [
            SCRIPTS / "fairseq-train", self.data, *OPTIONS, "--max-update", updates,
            "--lr", "0.003", "--warmup-updates", max(1, min(150, updates // 3)),
            "--validate-interval-updates", every, "--validate-interval", 1000,
            "--save-interval-updates", updates, "--save-dir", save_dir, *options,
        ]  # fmt: skip
        run(line, log)
        (save_dir / "finished").touch()
        print(f"{name}: {updates} updates", flush=True)
        return last

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(updates, validation loss in bits per token) of a run."""
        points = {}
        for line in (self.folder / f"{name}.log").read_text().splitlines():
            if f'"{METRIC}"' in line:
                entry = json.loads(line[line.index("{") :])
                points[int(entry["valid_num_updates"])] = float(entry[METRIC])
        return sorted(points.items())

    def at_start(self, name: str, checkpoint: Path, *options: object) -> float:
        """The validation loss of a checkpoint as it is: one update that changes nothing."""
        self.train(f"{name}-start", 1, "--finetune-from-model", checkpoint, *options, "--lr", "0")
        return self.curve(f"{name}-start")[-1][1]


def run(line: list[object], log: Path) -> None:
    with log.open("w") as file:
        ended = subprocess.run(
            [str(part) for part in line],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
    if ended.returncode:
        raise SystemExit(f"{log}: exit code {ended.returncode}\n{log.read_text()[-2000:]}")


def study(work: Study) -> dict[str, list[tuple[int, float]]]:
    """Curves by name, over all updates that went into the model."""
    n = work.lengths
    folder = work.folder
    with ThreadPoolExecutor(2) as pool:
        scratch = pool.submit(work.train, "scratch", n.scratch, "--moe-expert-count", "8")
        trunk = work.train("trunk", n.trunk, "--moe-expert-count", "4")
        parents = {
            name: work.train(name, n.parent, "--finetune-from-model", trunk, "--seed", seed)
            for name, seed in (("a", 2), ("b", 3))
        }
        models = {"joined": ("a", "b"), "doubled": ("a", "a")}
        for name, (one, two) in models.items():
            command = [SCRIPTS / "zcode", "aggregate", parents[one], parents[two]]
            run([*command, "--out", folder / f"{name}.pt", "--force"], folder / f"{name}.txt")
        starts = {name: work.at_start(name, folder / f"{name}.pt") for name in models}
        starts["a"] = work.at_start("a", parents["a"])
        fitted = work.train(
            "fitted", n.refit, "--finetune-from-model", folder / "joined.pt",
            "--freeze-except", "gate",
        )  # fmt: skip
        jobs = [
            ("joined, re-fitted", "fitted-on", fitted, n.on),
            ("joined", "joined-on", folder / "joined.pt", n.refit + n.on),
            ("doubled", "doubled-on", folder / "doubled.pt", n.refit + n.on),
            ("a", "a-on", parents["a"], n.refit + n.on),
        ]
        for _, name, start, updates in jobs:
            pool.submit(
                work.train, name, updates, "--finetune-from-model", start, "--seed", 4
            ).result()
        scratch.result()
    merged = n.trunk + 2 * n.parent
    single = n.trunk + n.parent
    curves = {"8 experts from scratch": work.curve("scratch")}
    curves["a and b joined"] = [(merged, starts["joined"]), *shifted(work, "joined-on", merged)]
    curves["a and b joined, gate re-fitted"] = [
        (merged, starts["joined"]),
        *shifted(work, "fitted", merged),
        *shifted(work, "fitted-on", merged + n.refit),
    ]
    curves["a with each expert twice"] = [
        (single, starts["doubled"]),
        *shifted(work, "doubled-on", single),
    ]
    curves["a, 4 experts"] = [(single, starts["a"]), *shifted(work, "a-on", single)]
    curves["b, 4 experts (parent)"] = shifted(work, "b", n.trunk)
    return curves


def shifted(work: Study, name: str, by: int) -> list[tuple[int, float]]:
    return [(update + by, loss) for update, loss in work.curve(name)]


def plot(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.8))
    markers = ["o", "s", "^", "D", "v", "x"]
    styles = ["-", "--", "-", ":", "-.", ":"]
    for (name, points), marker, style in zip(curves.items(), markers, styles, strict=True):
        axes.plot(*zip(*points, strict=True), style, marker=marker, markersize=4, label=name)
    axes.set_xlabel("updates that went into the model (of both parents, where it has two)")
    axes.set_ylabel("validation loss, bits per token")
    losses = sorted(loss for points in curves.values() for _, loss in points)
    axes.set_ylim(losses[0] - 0.2, losses[int(0.9 * len(losses))] + 0.5)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of binarised data")
    parser.add_argument("folder", type=Path, help="for the runs and the results")
    parser.add_argument("--quick", action="store_true", help="a few updates: whether it runs")
    args = parser.parse_args()
    lengths = Lengths(4, 4, 2, 4, 2) if args.quick else Lengths()
    curves = study(Study(args.data, args.folder, lengths))
    record = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": {name: version(name) for name in ("fairseq", "torch")},
        "lengths": vars(lengths),
        "metric": METRIC,
        "curves": curves,
    }
    (args.folder / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    rows = [("model", "updates", "loss at first", "at last")]
    for name, points in curves.items():
        first, last = points[0], points[-1]
        rows.append((name, f"{last[0]}", f"{first[1]:.3f} ({first[0]})", f"{last[1]:.3f}"))
    print(format_table(rows))
    plot(curves, args.folder / "aggregation.png")


if __name__ == "__main__":
    main()
