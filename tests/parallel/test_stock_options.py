"""Options of stock fairseq that meet experts on two ranks, many in one run."""

from __future__ import annotations

from pathlib import Path

import torch
from ranks import log, train
from torch import Tensor
from toy import EXACT

from zcode_plugin.checkpoint import io

TWO = ("--expert-parallel-size", "2", "--max-tokens", "300")
# Validation and a save every 2 updates, of which little is kept.
MANY = (
    *TWO, "--update-freq", "2", "--num-workers", "1", "--data-buffer-size", "2",
    "--store-ema", "--ema-decay", "0.5", "--ema-fp32",
    "--save-interval-updates", "2", "--keep-interval-updates", "1", "--keep-best-checkpoints", "1",
    "--validate-interval-updates", "3", "--batch-size-valid", "70", "--patience", "9",
)  # fmt: skip


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.pt"))


def states(folder: Path, name: str) -> list[dict[str, Tensor]]:
    """Weights, then their moving average, of each rank."""
    loaded = [io.load(folder / f"{name}-rank-{rank}.pt") for rank in (0, 1)]
    return [part for state in loaded for part in (state["model"], state["extra_state"]["ema"])]


def test_averages_workers_and_kept_checkpoints(reversal: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    output = train(reversal, whole, *MANY, "--max-update", "6", world=2)
    # At updates 2, 3, 4 and 6: every save and every third update.
    assert [int(number) for number in log(output, "valid", "valid_num_updates")] == [2, 3, 4, 6]
    kept = [name for name in files(whole) if not name.startswith("checkpoint.best_loss")]
    assert kept == [
        f"checkpoint{stem}-rank-{rank}.pt" for stem in ("_1_6", "_best", "_last") for rank in (0, 1)
    ]
    assert len(files(whole)) == len(kept) + 2  # the one best of each rank
    train(reversal, halves, *MANY, "--max-update", "4", world=2)
    train(reversal, halves, *MANY, "--max-update", "6", world=2)
    for one, other in zip(
        states(whole, "checkpoint_last"), states(halves, "checkpoint_last"), strict=True
    ):
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert "_float_tensor" in key or torch.equal(tensor, other[key]), key
    model, average, *_ = states(whole, "checkpoint_last")
    experts = [key for key in model if ".experts." in key]
    assert len(experts) == 2 * 2 * 4  # layers, experts of the rank, tensors of each
    assert not any(torch.equal(model[key], average[key]) for key in experts)


def test_restore_reset_and_patience(reversal: Path, tmp_path: Path) -> None:
    first = train(
        reversal, tmp_path / "first", *TWO, *EXACT, "--save-interval-updates", "3",
        "--disable-validation", "--max-update", "4", world=2,
    )  # fmt: skip
    # Nothing is learnt any more, so validation stops the run.
    options = (
        *TWO, *EXACT, "--restore-file", tmp_path / "first" / "checkpoint_1_3.pt", "--lr", "0",
        "--validate-interval-updates", "2", "--patience", "2", "--max-update", "20",
    )  # fmt: skip
    goes_on = train(reversal, tmp_path / "goes-on", *options, world=2)
    assert log(goes_on, "train_inner", "num_updates")[0] == 4
    assert log(goes_on, "train_inner", "loss")[0] == log(first, "train_inner", "loss")[3]
    assert "early stop since valid performance hasn't improved for last 2 runs" in goes_on
    anew = train(
        reversal, tmp_path / "anew", *options, "--reset-optimizer", "--reset-lr-scheduler",
        "--reset-meters", "--reset-dataloader", "--patience", "-1", "--max-update", "1", world=2,
    )  # fmt: skip
    assert log(anew, "train_inner", "num_updates") == [1]
    # The batch of the first update, which the weights have seen.
    assert log(anew, "train_inner", "loss")[0] < log(first, "train_inner", "loss")[0]
