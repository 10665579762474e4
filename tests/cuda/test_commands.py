"""Stock commands on a GPU against the same on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import EXACT, generate, lines, records, train

LENGTH = ("--max-update", "12", "--encoder-embed-dim", "64")


def _losses(output: str) -> list[float]:
    return [float(one["loss"]) for one in records(output, "train_inner")]


@pytest.fixture(scope="module")
def on_cpu(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], Path]:
    """Losses, and the checkpoint."""
    folder = tmp_path_factory.mktemp("cpu")
    return _losses(train(reversal, folder, *EXACT, *LENGTH)), folder / "checkpoint_last.pt"


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [((), 1e-3), (("--fp16",), 3e-2), (("--memory-efficient-bf16",), 3e-2), (("--bf16",), 3e-2)],
    ids=["fp32", "fp16", "memory-efficient-bf16", "bf16"],
)
def test_training(
    reversal: Path,
    tmp_path: Path,
    on_cpu: tuple[list[float], Path],
    options: tuple[str, ...],
    tolerance: float,
) -> None:
    found = _losses(train(reversal, tmp_path, *EXACT, *LENGTH, *options, gpu=True))
    assert found == pytest.approx(on_cpu[0], rel=tolerance)


@pytest.mark.parametrize(
    "options",
    [
        ("--multitask", "mt:1,dae:1,mlm:1,electra:1", "--ddp-backend", "legacy_ddp", "--fp16"),
        ("--moe-top-k", "2", "--moe-balance", "bias", "--fp16"),
        ("--moe-gate-sees-token", "--bf16"),
        ("--moe-residual", "--moe-eom", "0.1", "--moe-gating-dropout", "0.3", "--bf16"),
        ("--checkpoint-activations", "--update-freq", "2", "--fp16"),
    ],
    ids=lambda options: options[0],
)
def test_options_train(reversal: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    losses = _losses(train(reversal, tmp_path, *LENGTH, "--max-update", "30", *options, gpu=True))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("options", "share"), [((), 1), (("--fp16",), 0.9)], ids=["fp32", "fp16"])
def test_translation(
    reversal: Path, on_cpu: tuple[list[float], Path], options: tuple[str, ...], share: float
) -> None:
    """In half precision a model that has learnt little may waver between two words."""

    def hypotheses(*options: str, gpu: bool) -> list[str]:
        output = generate(reversal, on_cpu[1], "aa", "bb", *options, gpu=gpu)
        return [line.split("\t")[2] for line in lines(output, "H")]

    pairs = list(zip(hypotheses(*options, gpu=True), hypotheses(gpu=False), strict=True))
    assert sum(one == other for one, other in pairs) >= share * len(pairs)
