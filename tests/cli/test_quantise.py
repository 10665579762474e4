"""`zcode quantise` as users call it, and what stock commands make of its files."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint.rank_files import rank_state, write_rank_files
from toy import MODEL, TASK, bleu, command, generate, train

from zcode_plugin.checkpoint import io
from zcode_plugin.cli.main import main

Run = Callable[..., subprocess.CompletedProcess[str]]

LEARN = (
    "--max-update", "300", "--warmup-updates", "50", "--lr-scheduler", "inverse_sqrt", "--lr",
    "0.005", "--max-tokens", "500", "--label-smoothing", "0.1", "--dropout", "0",
    "--disable-validation", "--log-interval", "100", "--seed", "3", "--lang-pairs", "aa-bb",
)  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    ranks = {rank: rank_state(rank) for rank in range(2)}
    return list(write_rank_files(tmp_path, ranks).values())


@pytest.fixture(scope="module")
def trained(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two updates, in a folder of its own."""
    save_dir = tmp_path_factory.mktemp("trained")
    train(reversal, save_dir, *LEARN, "--max-update", "2")
    return save_dir / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def quantised(trained: Path) -> dict[int, Path]:
    """Its quantised files by bits."""
    return quantise(trained)


def quantise(path: Path) -> dict[int, Path]:
    """Quantised files beside a checkpoint, by bits."""
    paths = {bits: path.with_name(f"model{bits}.pt") for bits in (8, 4)}
    for bits, out in paths.items():
        assert main(["quantise", str(path), "--bits", str(bits), "--out", str(out)]) == 0
    return paths


@pytest.mark.slow
def test_translations_stay_as_good(reversal: Path, tmp_path: Path) -> None:
    train(reversal, tmp_path, *LEARN)
    learnt = tmp_path / "checkpoint_last.pt"
    quantised = quantise(learnt)
    runs = {
        "float32": (learnt,),
        "int8": (quantised[8],),
        "int4": (quantised[4],),
        "int8 in float16": (quantised[8], "--fp16"),
    }
    scores = {
        name: bleu(generate(reversal, path, "aa", "bb", *options))
        for name, (path, *options) in runs.items()
    }
    assert scores["float32"] > 85
    assert scores["int8"] > scores["float32"] - 1
    assert scores["int8 in float16"] > scores["float32"] - 1
    assert scores["int4"] > scores["float32"] - 5


def test_files_are_smaller_in_proportion(trained: Path, quantised: dict[int, Path]) -> None:
    """d 64, ffn 128, 4 experts in 2 layers: a float32 scale for each output channel."""
    model = io.load(trained)["model"]
    matrices, channels = 4 * 2 * 64 * 128, 4 * 2 * (64 + 128)
    rest = sum(v.nbytes for k, v in model.items() if "experts" not in k) + 4 * channels
    for bits, path in quantised.items():
        expected = 2 * matrices * bits // 8 + 4 * channels + rest
        # Names, options and shapes: a few hundred bytes a tensor.
        assert expected < path.stat().st_size < expected + 100_000
    saved = quantised[8].stat().st_size - quantised[4].stat().st_size
    assert saved == pytest.approx(matrices, rel=0.01)


def test_training_with_quantised_experts_is_refused(
    reversal: Path, quantised: dict[int, Path], tmp_path: Path
) -> None:
    start = ("fairseq-train", reversal, *TASK, *MODEL, "--criterion", "multitask_summed_loss",
             "--optimizer", "adam", "--max-tokens", "500", "--cpu", "--encoder-langtok", "tgt",
             "--save-dir", tmp_path)  # fmt: skip
    options = {
        ("--moe-expert-bits", "8"): "--moe-expert-bits 8 cannot be trained: leave it out, and make "
        "the checkpoint smaller afterwards with zcode quantise --bits 8",
        ("--finetune-from-model", quantised[4]): f"{quantised[4]} holds experts of 4 bits, made by "
        "zcode quantise to translate with, not to train on: name the checkpoint it was made of",
    }
    for flags, message in options.items():
        ended = command(*start, *flags)
        assert ended.returncode == 2
        assert f"zcode_plugin: error: {message}\n" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_prints_a_table_and_overwrites_only_when_forced(
    zcode: Run, here: Run, files: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "model8.pt"
    call = ("quantise", files[1], "--bits", "8", "--out", out)
    ended = zcode(*call)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    lines = ended.stdout.splitlines()
    assert lines[0].startswith(f"quantise 2 files to 8 bits ... {out} (")
    # [4 experts, 5 x 3] in each layer, 5 scales an expert.
    parts = {line[:16]: line[16:].split() for line in lines[3:8]}
    assert parts["encoder.layers.1"][:3] == parts["decoder.layers.0"][:3] == ["4", "240", "140"]
    assert parts["expert weights  "][:3] == ["8", "480", "280"]
    assert parts["all else        "] == ["14", "374", "374"]
    assert parts["model           "] == ["22", "854", "654"]
    for mean, largest in (cells[3:] for cells in parts.values() if len(cells) > 3):
        assert 0 < float(mean.rstrip("%")) <= float(largest.rstrip("%")) < 1
    read = sum(path.stat().st_size for path in files)
    assert lines[-1] == (
        f"{read:,} bytes read, {out.stat().st_size:,} written, without the optimizer's state and "
        "ema of --store-ema"
    )

    out.write_text("precious")
    ended = here(*call)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"zcode quantise: error: {out} exists: --force overwrites it, --out names another\n"
    )
    assert out.read_text() == "precious"
    assert here(*call, "--force").returncode == 0
    assert io.load(out)["cfg"]["model"].moe_expert_bits == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}/list.pt"], "{0}/list.pt: no fairseq checkpoint: it holds no model"),
        (["{0}/checkpoint_last.pt", "--bits", "2"],
         "argument --bits: invalid choice: 2 (choose from 8, 4)"),
    ],
)  # fmt: skip
def test_mistakes(
    here: Run, files: list[Path], tmp_path: Path, arguments: list[str], message: str
) -> None:
    torch.save([1], tmp_path / "list.pt")
    before = sorted(tmp_path.iterdir())
    words = [word.format(tmp_path) for word in arguments]
    ended = here("quantise", "--bits", "8", *words, "--out", tmp_path / "new.pt")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == f"zcode quantise: error: {message.format(tmp_path)}"
    assert sorted(tmp_path.iterdir()) == before
