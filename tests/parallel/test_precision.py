"""Half precision and both data parallel wrappers, with experts on two ranks."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ranks import OPTIONS, Ranks, log, train
from toy import EXACT

from zcode_plugin.errors import UserError
from zcode_plugin.models.moe_checks import check_zero_precision
from zcode_plugin.parallel.gradients import patch_optimizer
from zcode_plugin.parallel.topology import ExpertTopology

RUN = (
    "--max-tokens", "300", "--clip-norm", "0.3", "--adam-eps", "1e-4", "--max-update", "6",
    "--moe-gate-loss-wt", "0", "--disable-validation", "--no-save", *EXACT,
)  # fmt: skip
HALF = [
    ["--bf16"],
    ["--memory-efficient-bf16"],
    ["--fp16", "--fp16-init-scale", "16"],
    ["--memory-efficient-fp16", "--fp16-init-scale", "16"],
]


def losses_and_norms(data: Path, folder: Path, world: int, *options: str) -> torch.Tensor:
    output = train(
        data, folder / str(world), *RUN, "--update-freq", 4 // world, "--expert-parallel-size",
        world, *options, world=world,
    )  # fmt: skip
    return torch.tensor([log(output, "train_inner", key) for key in ("loss", "gnorm")])


def test_pytorch_ddp_equals_one_process(reversal: Path, tmp_path: Path) -> None:
    one = losses_and_norms(reversal, tmp_path, 1)
    two = losses_and_norms(reversal, tmp_path, 2, "--ddp-backend", "pytorch_ddp")
    assert torch.equal(one, two)  # to three decimals, as they are logged


@pytest.mark.parametrize(
    ("precision", "backend"),
    [
        pytest.param(
            precision, backend, id=f"{precision[0]}-{backend}",
            marks=[] if (precision[0], backend) == ("--fp16", "legacy_ddp") else pytest.mark.slow,
        )
        for precision in HALF
        for backend in ("legacy_ddp", "pytorch_ddp")
    ],
)  # fmt: skip
def test_half_precision_equals_one_process(
    reversal: Path, tmp_path: Path, precision: list[str], backend: str
) -> None:
    """As far as numbers of 8 or 11 bits go."""
    one = losses_and_norms(reversal, tmp_path, 1, *precision)
    two = losses_and_norms(reversal, tmp_path, 2, *precision, "--ddp-backend", backend)
    assert one.shape == two.shape == (2, 6)
    torch.testing.assert_close(two, one, rtol=0.02, atol=0)


@pytest.mark.parametrize("copies", [torch.zeros(9), {0: torch.zeros(9)}])
def test_one_flat_copy_of_all_weights_is_refused(copies: object) -> None:
    """What stock's --fp16 keeps on a GPU: one tensor, or one for each device."""
    optimizer = SimpleNamespace(fp32_params=copies)
    with pytest.raises(UserError, match="--fp16-no-flatten-grads or --memory-efficient-fp16"):
        patch_optimizer(optimizer, ExpertTopology(size=2))


def test_zero_sharding_of_one_flat_copy_is_refused() -> None:
    """On a GPU; stock ends in a traceback there."""
    options = Namespace(zero_sharding="os", fp16=True, cpu=False)
    with pytest.raises(UserError, match=r"--zero-sharding os .* add --fp16-no-flatten-grads"):
        check_zero_precision(options)
    for apart in ("memory_efficient_fp16", "fp16_no_flatten_grads", "cpu"):
        check_zero_precision(Namespace(**{**vars(options), apart: True}))
    check_zero_precision(Namespace(**{**vars(options), "zero_sharding": "none"}))


def _spoil_an_expert(rank: int) -> None:
    """An infinite gradient in the third update, in one expert of the second rank."""
    from zcode_plugin.tasks.training import TrainingTask

    stock = TrainingTask.train_step

    def train_step(self, sample, model, *args, **options):  # type: ignore[no-untyped-def]
        result = stock(self, sample, model, *args, **options)
        if rank == 1 and options["update_num"] == 2 and not hasattr(self, "spoilt"):
            self.spoilt = True
            model.encoder.layers[1].moe_layer.experts.fc1_weight.grad[0, 0, 0] = torch.inf
        return result

    TrainingTask.train_step = train_step


def test_all_ranks_skip_an_overflow_of_one(reversal: Path, tmp_path: Path) -> None:
    arguments = [
        reversal, *OPTIONS, *RUN, "--expert-parallel-size", "2", *HALF[2],
        "--save-dir", tmp_path,
    ]  # fmt: skip
    ranks = Ranks(arguments, 2, tmp_path / "logs", _spoil_an_expert)
    assert ranks.exit_codes() == [0, 0]
    scales = log(ranks.output(), "train_inner", "loss_scale")
    assert scales == [16, 16, 8, 8, 8, 8]
    assert all(0 < norm < 100 for norm in log(ranks.output(), "train_inner", "gnorm"))


def test_all_ranks_stop_at_an_infinite_gradient_of_one(reversal: Path, tmp_path: Path) -> None:
    arguments = [
        reversal, *OPTIONS, *RUN, "--expert-parallel-size", "2", "--save-dir", tmp_path,
    ]  # fmt: skip
    ranks = Ranks(arguments, 2, tmp_path / "logs", _spoil_an_expert)
    assert ranks.exit_codes() == [1, 1]
    for rank in (0, 1):
        assert (
            f"rank {rank} of 2 failed: gradients of experts of rank 1 are infinite or NaN"
        ) in ranks.output(rank)
        assert not (tmp_path / "crash.pt").exists()
        assert '"num_updates": "3"' not in ranks.output(rank)
