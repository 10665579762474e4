"""Two ranks with the experts spread over them do what one process does on the same batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import log, train
from torch import Tensor
from toy import EXACT

from zcode_plugin.checkpoint import io
from zcode_plugin.cli.main import main

# SGD shows gradients as they are: Adam would hide a wrong factor.
STEP = (
    "--optimizer", "sgd", "--lr", "0.5", "--lr-scheduler", "fixed", "--max-tokens", "300",
    "--clip-norm", "1.0", *EXACT,
)  # fmt: skip


def weights(path: Path) -> dict[str, Tensor]:
    return io.load(path)["model"]


def merged_weights(save_dir: Path) -> dict[str, Tensor]:
    first, out = save_dir / "checkpoint_last-rank-0.pt", save_dir / "merged.pt"
    assert main(["merge", str(first), "--out", str(out)]) == 0
    return weights(save_dir / "merged.pt")


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        if not key.endswith("_float_tensor"):  # stock's buffer that nothing sets
            torch.testing.assert_close(tensor, other[key], rtol=0, atol=tolerance, msg=key)


def test_updates_equal(reversal: Path, tmp_path: Path) -> None:
    """Loss, global gradient norm (through clipping too) and weights, after SGD updates."""
    options = (*STEP, "--max-update", "4", "--disable-validation")
    single = train(reversal, tmp_path / "one", *options, "--update-freq", "2")
    double = train(reversal, tmp_path / "two", *options, "--expert-parallel-size", "2", world=2)
    for key in ("loss", "gnorm"):
        assert log(single, "train_inner", key) == log(double, "train_inner", key)
    assert max(log(single, "train_inner", "gnorm")) > 1, "nothing was clipped"
    assert_same(
        weights(tmp_path / "one" / "checkpoint_last.pt"), merged_weights(tmp_path / "two"), 1e-5
    )


def _rank_gradients(rank: int, arguments: list[str], world: int) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one update over both objectives; ranks split the sentences."""
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.optim import build_optimizer

    from zcode_plugin import register

    register()
    torch.manual_seed(7)
    cfg: Any = convert_namespace_to_omegaconf(
        options.parse_args_and_arch(options.get_training_parser(), arguments)
    )
    task = tasks.setup_task(cfg.task)
    task.load_dataset("train")
    dataset = task.dataset("train")
    model, criterion = task.build_model(cfg.model), task.build_criterion(cfg.criterion)
    optimizer = build_optimizer(cfg.optimizer, list(model.parameters()))
    batch = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=400)[0]
    sample = dataset.collater([dataset[index] for index in batch[rank::world]])
    loss, sample_size, _ = task.train_step(sample, model, criterion, optimizer, update_num=0)
    totals = torch.tensor([float(loss.detach()), float(sample_size)], dtype=torch.float64)
    if world > 1:
        torch.distributed.all_reduce(totals)
    grads = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad / totals[1].float()
        if hasattr(parameter, "expert"):
            # The trainer would average shared and expert gradients, and multiply all by world.
            for index, row in enumerate(grad):
                grads[f"{name}.{rank * len(grad) + index}"] = row
        elif name.endswith(("fc1_weight", "fc2_weight", "fc1_bias", "fc2_bias")):
            grads.update({f"{name}.{index}": row for index, row in enumerate(grad)})
        else:
            if world > 1:
                torch.distributed.all_reduce(grad)
            grads[name] = grad
    return float(totals[0] / totals[1]), grads


def test_objectives_are_means_over_all_ranks(reversal: Path) -> None:
    """Two ranks with halves of the sentences equal one process with all; three objectives."""
    from distributed import run_ranks
    from toy import MODEL, TASK

    arguments = [
        str(reversal), *TASK, *MODEL, "--criterion", "multitask_summed_loss", "--cpu",
        "--multitask", "mt:1,dae:0.7,mlm:0.5", "--multitask-max-tokens", "dae:150,mlm:150",
        "--encoder-langtok", "tgt", "--optimizer", "sgd", "--lr", "1", *EXACT,
        "--ddp-backend", "legacy_ddp",
        # The balance loss is a product of means: that of a whole batch is not that of its halves.
        "--moe-gate-loss-wt", "0", "--label-smoothing", "0.1",
    ]  # fmt: skip
    [(loss, grads)] = run_ranks(_rank_gradients, 1, arguments, 1)
    parts = run_ranks(_rank_gradients, 2, [*arguments, "--expert-parallel-size", "2"], 2)
    assert parts[0][0] == pytest.approx(loss, rel=1e-6)
    together = {**parts[0][1], **parts[1][1]}
    assert together.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(together[name], grad, rtol=1e-4, atol=1e-6, msg=name)
