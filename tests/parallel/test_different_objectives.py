"""Ranks whose passes differ: validation, and tasks and backends that cannot do with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import refusal, train
from toy import EXACT, MODEL, PLUGIN, TASK, records

TWO = ("--expert-parallel-size", "2")
BOTH = ("--multitask", "mt:1,mlm:1")


def test_validation_goes_through_the_same_passes_on_all_ranks(
    reversal: Path, tmp_path: Path
) -> None:
    """3 batches of mt, then 5 of mlm: in the second step one rank has either."""
    options = (
        *BOTH, *EXACT, "--lr", "0", "--max-tokens", "1000", "--batch-size-valid", "40",
        "--max-update", "1",
    )  # fmt: skip
    [one] = records(train(reversal, tmp_path / "one", *options), '"valid_loss"')
    [two] = records(train(reversal, tmp_path / "two", *options, *TWO, world=2), '"valid_loss"')
    assert one.keys() == two.keys()
    assert "valid_mlm_accuracy" in one
    compared = [key for key in one if "loss" in key or "accuracy" in key or "entropy" in key]
    for key in compared:
        assert float(two[key]) == pytest.approx(float(one[key]), abs=0.002), key


STOCK_TASK = (
    "--user-dir", PLUGIN, "--task", "translation", "-s", "aa", "-t", "bb", *MODEL, "--criterion",
    "label_smoothed_cross_entropy", "--ddp-backend", "legacy_ddp",
)  # fmt: skip
OURS = (*TASK, *MODEL, "--criterion", "multitask_summed_loss")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            (*STOCK_TASK, *TWO),
            "--expert-parallel-size 2 needs --task multitask_multilingual, which scales and "
            "averages the gradients of what ranks do not share; tasks of stock would train "
            "something else",
        ),
        (
            (*OURS, *BOTH, "--ddp-backend", "pytorch_ddp"),
            "--ddp-backend pytorch_ddp cannot train mlm, which has no decoder, beside mt: give "
            "--ddp-backend legacy_ddp",
        ),
    ],
    ids=["task", "backend"],
)
def test_what_cannot_work_is_refused(
    reversal: Path, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    line = [
        reversal, *options, "--optimizer", "adam", "--max-tokens", "1000", "--cpu",
        "--distributed-backend", "gloo", "--save-dir", tmp_path / "save",
    ]  # fmt: skip
    assert refusal(line, tmp_path / "logs") == f"zcode_plugin: error: {message}"
