"""Ranks with slices of the layers do what one process does, with experts spread over them, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import OPTIONS, Ranks, log, train
from sliced_runs import (
    CLIP,
    COMPARABLE,
    RANDOM,
    SAVED,
    SGD,
    T2,
    T2P2,
    UPDATES,
    Layout,
    Run,
    assert_equal,
    run_layout,
    texts,
)
from toy import generate, lines

LAYOUTS = [T2, T2P2, Layout(4, 2), Layout(4, 4), Layout(8, 2, 2)]


@pytest.fixture(scope="module")
def single(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("single") / "run"
    return run_layout(reversal, folder, Layout(), *COMPARABLE)


@pytest.fixture(scope="module")
def translations(reversal: Path, single: Run) -> list[str]:
    return lines(generate(reversal, single.file, "aa", "bb"), "D")


@pytest.mark.parametrize(
    "layout",
    [pytest.param(x, id=str(x), marks=[pytest.mark.slow] * (x not in (T2, T2P2))) for x in LAYOUTS],
)
def test_updates_equal_those_of_one_process(
    single: Run, translations: list[str], reversal: Path, tmp_path: Path, layout: Layout
) -> None:
    """Through a save and a reload, and `zcode merge`, whose file translates as the other does."""
    assert len(single.losses) == UPDATES
    assert single.norms.min() > CLIP, "not every update was clipped"
    run = run_layout(reversal, tmp_path / "run", layout, *COMPARABLE, stops=(SAVED, UPDATES))
    assert_equal(run, single)
    saved = sorted(path.name for path in (tmp_path / "run" / "save").iterdir())
    kind, count = (
        ("rank", layout.world)
        if layout.expert_parallel > 1
        else ("model_part", layout.tensor_parallel)
    )
    assert saved == [f"checkpoint_last-{kind}-{number}.pt" for number in range(count)]
    if layout == T2P2:
        translated = lines(generate(reversal, run.file, "aa", "bb"), "D")
        assert len(translated) == 100
        assert texts(translated) == texts(translations)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [T2, T2P2], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        SGD,
        (*SGD, "--moe-residual", "--moe-top-k", "2", "--clip-norm", "0"),
        ("--arch", "moe_transformer_stock", "--encoder-attention-heads", "4",
         "--decoder-attention-heads", "4", "--decoder-embed-dim", "64",
         "--decoder-ffn-embed-dim", "128"),
        ("--activation-fn", "tanh", "--checkpoint-activations", "--encoder-learned-pos"),
    ],
    ids=["sgd", "residual", "embeddings-apart", "checkpointed"],
)  # fmt: skip
def test_other_options(
    reversal: Path, tmp_path: Path, layout: Layout, options: tuple[str, ...]
) -> None:
    single = run_layout(reversal, tmp_path / "one", Layout(), *COMPARABLE, *options)
    assert_equal(run_layout(reversal, tmp_path / "run", layout, *COMPARABLE, *options), single)


@pytest.mark.slow
def test_heads_of_objectives(reversal: Path, tmp_path: Path) -> None:
    """On ranks of one batch: over several, objectives are weighed within each micro-batch."""
    options = ("--multitask", "mt:1,dae:0.5,mlm:1", "--max-tokens", "200")
    single = run_layout(reversal, tmp_path / "one", Layout(), *COMPARABLE, *options)
    assert_equal(run_layout(reversal, tmp_path / "run", T2, *COMPARABLE, *options), single)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [T2, T2P2], ids=str)
def test_what_is_random_keeps_replicas_together_and_repeats_itself(
    reversal: Path, tmp_path: Path, layout: Layout
) -> None:
    """With every kind of draw: through a reload bit for bit; recomputed, gradients are added up in
    another order, but the draws are the same."""
    options = (*RANDOM, "--check-replicas", "1")
    one, resumed, recomputed = (
        run_layout(reversal, tmp_path / name, layout, *options, *more, stops=stops)
        for name, stops, more in (
            ("one", (4,), ()),
            ("resumed", (2, 4), ()),
            ("recomputed", (4,), ("--checkpoint-activations",)),
        )
    )
    assert torch.equal(one.losses, resumed.losses)
    for key, weight in one.weights.items():
        assert torch.equal(resumed.weights[key], weight), key
    torch.testing.assert_close(recomputed.losses, one.losses, rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision",
    [("--bf16",), ("--fp16", "--memory-efficient-fp16", "--fp16-init-scale", "4"),
     ("--fp16", "--fp16-no-flatten-grads", "--fp16-init-scale", "4")],
    ids=["bf16", "memory-efficient-fp16", "fp16"],
)  # fmt: skip
def test_half_precision(
    single: Run, reversal: Path, tmp_path: Path, precision: tuple[str, ...]
) -> None:
    run = run_layout(reversal, tmp_path / "run", T2P2, *COMPARABLE, *precision)
    torch.testing.assert_close(run.losses, single.losses, rtol=0.01, atol=0)
    torch.testing.assert_close(run.norms, single.norms, rtol=0.02, atol=0)


@pytest.mark.slow
def test_a_merged_file_is_finetuned_in_slices(single: Run, reversal: Path, tmp_path: Path) -> None:
    """With a learning rate of 0 the weights stay those that were loaded."""
    finetune = ("--finetune-from-model", single.file, "--lr", "0")
    run = run_layout(reversal, tmp_path / "run", T2P2, *COMPARABLE, *finetune, stops=(1,))
    for key, weight in single.weights.items():
        assert torch.equal(run.weights[key], weight), key


@pytest.mark.slow
def test_bleu_in_validation_is_that_of_one_process(reversal: Path, tmp_path: Path) -> None:
    options: tuple[Any, ...] = (
        "--max-tokens", "300", *COMPARABLE, "--max-update", "30", "--eval-bleu",
        "--eval-bleu-args", '{"beam": 2, "max_len_b": 10}', "--validate-interval-updates", "30",
    )  # fmt: skip
    one, four = (
        train(reversal, tmp_path / str(layout.world), *options, *layout.flags, world=layout.world)
        for layout in (Layout(), T2P2)
    )
    assert log(one, "valid", "valid_bleu") == log(four, "valid", "valid_bleu")
    assert log(one, "valid", "valid_bleu")[0] > 0


@pytest.mark.parametrize(
    ("world", "options", "message"),
    [
        (2, ["--encoder-attention-heads", "1"],
         "--model-parallel-size 2 must divide --encoder-attention-heads 1: change one of them"),
        (2, ["--zero-sharding", "os"],
         "--zero-sharding cannot go with --model-parallel-size 2, whose slices know nothing of "
         "it: drop one of them"),
        (2, ["--expert-parallel-size", "2"],
         "--expert-parallel-size 2 must divide the world size 1 and --moe-expert-count 4: choose "
         "a common divisor, or other numbers of ranks and experts"),
        (1, [],
         "--model-parallel-size 2 needs a multiple of 2 ranks, this is one process: start it with "
         "torchrun, or drop the flag"),
    ],
    ids=["heads", "zero", "world", "one-process"],
)  # fmt: skip
def test_refusals(
    reversal: Path, tmp_path: Path, world: int, options: list[str], message: str
) -> None:
    line = [reversal, *OPTIONS, "--max-tokens", "300", "--save-dir", tmp_path / "save"]
    ranks = Ranks([*line, "--model-parallel-size", "2", *options], world, tmp_path / "logs")
    assert ranks.exit_codes() == [2] * world
    for rank in range(world):
        assert f"zcode_plugin: error: {message}" in ranks.output(rank).splitlines()
