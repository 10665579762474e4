"""Runs whose ranks hold slices of layers, to be compared with one process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from ranks import train, watch, watched
from torch import Tensor
from toy import EXACT

from zcode_plugin.checkpoint import io, names
from zcode_plugin.checkpoint.merge import merge

UPDATES, SAVED = 5, 3
CLIP = 0.3
TOLERANCE = 1e-5
RUN = ("--max-tokens", "300", "--clip-norm", CLIP, "--disable-validation")
ADAM = ("--adam-eps", "1e-4")  # see test_layouts.py
# ReLU's gradient jumps at 0, and some hidden value lies there but for rounding: plain data parallel
# ranks then differ by 2e-5, too.
COMPARABLE = (
    *EXACT, "--moe-gate-loss-wt", "0", "--label-smoothing", "0.1", "--activation-fn", "gelu",
)  # fmt: skip
RANDOM = (
    "--dropout", "0.1", "--attention-dropout", "0.1", "--activation-dropout", "0.1",
    "--moe-jitter-eps", "0.01", "--moe-capacity-factor", "0.8", "--moe-top-k", "2",
    "--moe-residual", "--moe-gating-dropout", "0.3", "--multitask", "mt:1,dae:0.5,mlm:1,electra:1",
    "--max-update", "4",
)  # fmt: skip
SGD = ("--optimizer", "sgd", "--lr", "0.5", "--lr-scheduler", "fixed", "--clip-norm", "1")


@dataclass(frozen=True)
class Layout:
    """World, T and P; 4 batches an update in every layout."""

    world: int = 1
    tensor_parallel: int = 1
    expert_parallel: int = 1

    @property
    def flags(self) -> tuple[object, ...]:
        return (
            "--update-freq", 4 * self.tensor_parallel // self.world,
            "--model-parallel-size", self.tensor_parallel,
            "--expert-parallel-size", self.expert_parallel,
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.world} ranks, T={self.tensor_parallel}, P={self.expert_parallel}"


T2, T2P2 = Layout(2, 2), Layout(4, 2, 2)


@dataclass
class Run:
    """Loss and norm after each update, and the weights of all ranks together, in one file."""

    losses: Tensor
    norms: Tensor
    weights: dict[str, Tensor]
    file: Path

    @property
    def parameters(self) -> list[str]:
        """As the optimizer numbers them."""
        return io.load_options(self.file)["task_state"]["parameters"]


def run_layout(
    data: Path, folder: Path, layout: Layout, *options: object, stops: tuple[int, ...] = (UPDATES,)
) -> Run:
    """Train; after each of `stops` updates the ranks end and start again.

    A second call with the same folder goes on from there.
    """
    folder.mkdir(exist_ok=True)
    adam = () if "sgd" in options else ADAM
    for stop in stops:
        output = train(
            data, folder / "save", *RUN, *adam, *layout.flags, *options, "--max-update", stop,
            world=layout.world, inside=partial(watch, folder),
        )  # fmt: skip
    if len(stops) > 1:
        assert f"@ {stops[0]} updates" in output, "it began anew"
    whole = folder / "save" / "checkpoint_last.pt"
    if layout.world > 1:
        state, _ = merge(names.find_rank_files(whole))
        whole = folder / "merged.pt"
        io.save(state, whole)
    # Every rank sees the same norm; ranks of other data have losses of their own.
    ranks = [watched(folder, rank) for rank in range(layout.world)]
    for entries in ranks[1:]:
        assert [entry["norm"] for entry in entries] == [entry["norm"] for entry in ranks[0]]
    return Run(
        *(
            torch.tensor([entry[key] for entry in ranks[0]], dtype=torch.float64)
            for key in ("loss", "norm")
        ),
        # Without stock's buffer that nothing sets.
        {key: value for key, value in io.load(whole)["model"].items() if "_float_te" not in key},
        whole,
    )


def assert_equal(run: Run, single: Run, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(run.losses, single.losses, rtol=0, atol=tolerance)
    torch.testing.assert_close(run.norms, single.norms, rtol=tolerance, atol=tolerance)
    assert run.weights.keys() == single.weights.keys()
    assert run.parameters == single.parameters  # else zcode reshard would mix them up
    for key, weight in single.weights.items():
        torch.testing.assert_close(run.weights[key], weight, rtol=0, atol=tolerance, msg=key)


def texts(translated: list[str]) -> list[str]:
    """Without the scores, whose last digits are rounding's."""
    return [line.rpartition("\t")[2] for line in translated]
