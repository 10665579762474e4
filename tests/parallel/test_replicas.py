"""Ranks that hold the same weights hold the same bits, and it shows when they do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from distributed import run_ranks
from ranks import OPTIONS, Ranks, log, train
from torch import nn

from zcode_plugin.parallel.faults import RankError
from zcode_plugin.parallel.replicas import check_replicas, checksum
from zcode_plugin.parallel.topology import ExpertTopology, expert_topology

# Experts on two ranks each, everything random that can be.
RUN = (
    "--expert-parallel-size", "2", "--max-tokens", "150", "--clip-norm", "1.0",
    "--moe-capacity-factor", "0.8", "--moe-jitter-eps", "0.01", "--disable-validation",
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
def test_a_checksum_sees_every_bit_and_place(dtype: torch.dtype) -> None:
    tensor = torch.arange(1, 101).reshape(4, 25).to(dtype)
    whole = int(checksum(tensor))
    assert whole == int(checksum(tensor.clone()))
    for place in (0, 51, 99):
        for bit in range(8 * tensor.element_size()):
            other = tensor.clone()
            other.view(torch.uint8).view(-1)[place * tensor.element_size() + bit // 8] ^= (
                1 << bit % 8
            )
            assert int(checksum(other)) != whole
    assert int(checksum(tensor.flip(0))) != whole


def _check(rank: int, corrupted: str | None) -> str:
    topology = expert_topology(2)
    model = nn.Module()
    model.shared = nn.Parameter(torch.ones(5))
    model.experts = nn.Parameter(torch.full((3,), float(rank % 2)))
    model.experts.expert = True  # type: ignore[attr-defined]
    model.register_buffer("bias", torch.zeros(2))
    if rank == 3 and corrupted:
        tensor = getattr(model, corrupted)
        tensor.data[1] = torch.nextafter(tensor.data[1], torch.tensor(9.0))
    try:
        check_replicas(model, topology, 7)
    except RankError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("corrupted", "message"),
    [
        (None, ""),
        ("shared", "after 7 updates: shared of rank 3 is not that of rank 0: resume"),
        ("experts", "after 7 updates: experts of rank 3 is not that of rank 1: resume"),
        ("bias", "after 7 updates: bias of rank 3 is not that of rank 0: resume"),
    ],
)
def test_all_ranks_name_the_one_that_drifted(corrupted: str | None, message: str) -> None:
    said = run_ranks(_check, 4, corrupted)
    assert said == [said[0]] * 4
    assert message in said[0]


def _check_model_of_stock(rank: int) -> str:
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, float(rank))
    try:
        check_replicas(model, ExpertTopology(), 3)
    except RankError as error:
        return str(error)
    return ""


def test_models_that_know_nothing_of_experts_are_compared_too() -> None:
    for said in run_ranks(_check_model_of_stock, 2):
        assert "weight of rank 1 is not that of rank 0" in said


def test_twenty_updates_keep_replicas_identical(reversal: Path, tmp_path: Path) -> None:
    """Experts on 2 of 4 ranks each."""
    output = train(
        reversal, tmp_path / "save", *RUN, "--max-update", "20", "--check-replicas", "1",
        "--no-save", world=4,
    )  # fmt: skip
    assert len(log(output, "train_inner", "loss")) == 20


def test_a_replica_that_drifts_ends_the_run(reversal: Path, tmp_path: Path) -> None:
    def corrupt(rank: int) -> None:
        from fairseq.trainer import Trainer

        stock = Trainer.train_step

        def train_step(self, *args):  # type: ignore[no-untyped-def]
            if rank == 2 and self.get_num_updates() == 3:
                expert = self.model.encoder.layers[1].moe_layer.experts.fc1_weight
                expert.data[0, 0, 0] += 1e-6
            return stock(self, *args)

        Trainer.train_step = train_step

    arguments = [
        reversal, *OPTIONS, "--save-dir", tmp_path, *RUN, "--max-update", "8",
        "--check-replicas", "2",
    ]  # fmt: skip
    ranks = Ranks(arguments, 4, tmp_path / "logs", corrupt)
    assert ranks.exit_codes(120) == [1] * 4
    for rank in range(4):
        assert (
            "after 4 updates: encoder.layers.1.moe_layer.experts.fc1_weight of rank 2 is not that "
            "of rank 0"
        ) in ranks.output(rank)
