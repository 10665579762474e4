"""A run that goes on in another form of parallelism does what one process does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from ranks import train, watch, watched
from sliced_runs import ADAM, COMPARABLE, RUN
from torch import Tensor

from zcode_plugin.checkpoint import io
from zcode_plugin.checkpoint.gather import find_files, gather_for_one_process
from zcode_plugin.checkpoint.tensors import weights
from zcode_plugin.cli.main import main

UPDATES, MOVED, BATCHES = 5, 2, 4  # batches of an update over all ranks
ZERO = ("--zero-sharding", "os")
SHARDS = ("--ddp-backend", "fully_sharded", "--use-sharded-state")
OFFLOAD = (*SHARDS, "--cpu-offload")


@dataclass(frozen=True)
class Form:
    """World, P and T, and what else makes the form."""

    name: str
    world: int = 1
    expert_parallel: int = 1
    tensor_parallel: int = 1
    options: tuple[str, ...] = ()

    @property
    def flags(self) -> tuple[object, ...]:
        """Of fairseq-train."""
        return (
            "--expert-parallel-size", self.expert_parallel,
            "--model-parallel-size", self.tensor_parallel,
            "--update-freq", BATCHES * self.tensor_parallel // self.world, *self.options,
        )  # fmt: skip

    @property
    def reshard(self) -> list[str]:
        """Of zcode reshard."""
        sizes = {
            "ranks": self.world,
            "expert-parallel-size": self.expert_parallel,
            "model-parallel-size": self.tensor_parallel,
        }
        return [f"--{name}={size}" for name, size in sizes.items()]

    def __str__(self) -> str:
        return self.name


ONE = Form("one process")
E2 = Form("E on 2", 2, 2)
ED4 = Form("E+D on 4", 4, 2)
M2 = Form("M on 2", 2, tensor_parallel=2)
M4 = Form("M on 4", 4, tensor_parallel=4)
DM4 = Form("D+M on 4", 4, tensor_parallel=2)
EM4 = Form("E+M on 4", 4, 2, 2)
E2_Z1 = Form("E+Z1 on 2", 2, 2, options=ZERO)
E2_OFF = Form("E+Z-Off on 2", 2, 2, options=OFFLOAD)
D2_Z3 = Form("Z3 on 2", 2, options=SHARDS)
ED4_Z3 = Form("E+Z3 on 4", 4, 2, options=SHARDS)


def run_form(
    data: Path, folder: Path, form: Form, *options: object, updates: int = UPDATES
) -> None:
    folder.mkdir(exist_ok=True)
    train(
        data, folder / "save", *RUN, *COMPARABLE, *form.flags, *options, "--max-update", updates,
        world=form.world, inside=partial(watch, folder),
    )  # fmt: skip


def all_weights(folder: Path) -> list[dict[str, Tensor]]:
    """Of the model, and averaged ones, but for stock's buffer that nothing sets."""
    files = find_files(folder / "save" / "checkpoint_last.pt", shards_too=True)
    return [
        {key: value for key, value in tensors.items() if "_float_tensor" not in key}
        for tensors in weights(gather_for_one_process(files).state)
    ]


def moved(data: Path, folder: Path, forms: list[Form], *options: object) -> Path:
    """Train two updates in the first form, three in the last, by way of the others."""
    first, *others = forms
    source = folder / "first"
    run_form(data, source, first, *options, updates=MOVED)
    [before, *_] = find_files(source / "save" / "checkpoint_last.pt", shards_too=True)
    iterator = io.load(before)["extra_state"]["train_iterator"]
    assert iterator["epoch"] == 1
    assert iterator["iterations_in_epoch"] == MOVED * BATCHES * first.tensor_parallel // first.world
    for number, form in enumerate(others):
        target = folder / str(number)
        target.mkdir()
        assert main(["reshard", str(before), *form.reshard, "--out", str(target / "save")]) == 0
        [before, *_] = find_files(target / "save" / "checkpoint_last.pt")
    run_form(data, target, others[-1], *options)
    return target


def assert_goes_on(target: Path, single: Path, tolerance: float) -> None:
    """Loss and norm of each update after the move, and all weights at the end."""
    expected, found = watched(single)[MOVED:], watched(target)
    assert [entry["update"] for entry in found] == [entry["update"] for entry in expected]
    for key in ("loss", "norm"):
        values = [
            torch.tensor([entry[key] for entry in entries], dtype=torch.float64)
            for entries in (found, expected)
        ]
        torch.testing.assert_close(*values, rtol=tolerance, atol=tolerance)
    for own, others in zip(all_weights(target), all_weights(single), strict=True):
        assert own.keys() == others.keys()
        for key, weight in others.items():
            torch.testing.assert_close(own[key], weight, rtol=0, atol=tolerance, msg=key)


@pytest.fixture(scope="module")
def single(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single") / "run"
    run_form(reversal, folder, ONE, *ADAM)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "forms",
    [
        [EM4, ONE], [ONE, M2], [EM4, E2], [E2_Z1, EM4], [M2, M4], [DM4, ED4],
        [ONE, EM4, M2, ONE], [E2_OFF, E2], [E2_OFF, ONE], [ED4_Z3, ED4], [D2_Z3, EM4],
    ],
    ids=lambda forms: ", ".join(map(str, forms)),
)  # fmt: skip
def test_a_moved_run_goes_on(
    single: Path, reversal: Path, tmp_path: Path, forms: list[Form]
) -> None:
    assert_goes_on(moved(reversal, tmp_path, forms, *ADAM), single, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("forms", [[M2, ONE], [ONE, EM4]], ids=lambda forms: str(forms[0]))
def test_momentum_and_averaged_weights(reversal: Path, tmp_path: Path, forms: list[Form]) -> None:
    options = (
        "--optimizer", "sgd", "--momentum", "0.9", "--lr", "0.1", "--lr-scheduler", "fixed",
        "--store-ema", "--ema-fp32",
    )  # fmt: skip
    run_form(reversal, tmp_path / "one", ONE, *options)
    assert len(all_weights(tmp_path / "one")) == 3
    assert_goes_on(moved(reversal, tmp_path, forms, *options), tmp_path / "one", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["--memory-efficient-fp16", "--fp16-no-flatten-grads"])
def test_half_precision(reversal: Path, tmp_path: Path, precision: str) -> None:
    """As far as numbers of 11 bits go, and the order of sums is another."""
    options = (*ADAM, "--fp16", precision, "--fp16-init-scale", "4")
    run_form(reversal, tmp_path / "one", ONE, *options)
    assert_goes_on(moved(reversal, tmp_path, [EM4, ONE], *options), tmp_path / "one", 1e-3)
