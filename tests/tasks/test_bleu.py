"""Translation inside validation: the same BLEU however many ranks share the work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fairseq import tasks
from ranks import log, train
from toy import bleu, generate

EVAL = (
    "--eval-bleu", "--eval-bleu-args", '{"beam": 5, "max_len_b": 10}', "--batch-size-valid", "70",
    "--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric",
)  # fmt: skip
METRICS = (
    "valid_bleu",
    "valid_mt_bleu_aa-bb",
    "valid_mt_bleu_bb-aa",
    "valid_loss",
    "valid_mt_loss",
)


def last(output: str) -> dict[str, float]:
    return {key: log(output, "valid", key)[-1] for key in METRICS}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param([], id="encoder-token"),
        pytest.param(["--decoder-langtok"], id="decoder-token", marks=pytest.mark.slow),
    ],
)
def learnt(
    request: pytest.FixtureRequest, reversal: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float], list[str]]:
    """A model of one process that has learnt a little, what it logged, and its options."""
    folder = tmp_path_factory.mktemp("learnt") / "save"
    output = train(
        reversal, folder, "--max-tokens", "1000", "--max-update", "140",
        "--validate-interval", "99", *EVAL, *request.param,
    )  # fmt: skip
    return folder / "checkpoint_best.pt", last(output), request.param


def evaluated_on(
    world: int, size: int, reversal: Path, folder: Path, learnt: tuple[Path, Any, list[str]]
) -> dict[str, float]:
    """Validation of the same weights on other ranks, after an update that changes nothing."""
    checkpoint, _, options = learnt
    output = train(
        reversal, folder / "save", "--max-tokens", "1000", "--max-update", "1", "--lr", "0",
        "--finetune-from-model", checkpoint,
        "--expert-parallel-size", size, *EVAL, *options,
        world=world,
    )  # fmt: skip
    return last(output)


def test_bleu_is_that_of_one_process_and_of_generate(
    learnt: tuple[Path, dict[str, float], list[str]], reversal: Path, tmp_path: Path
) -> None:
    """200 sentences make 3 batches of 70: the last of 4 ranks has none of its own."""
    checkpoint, one, options = learnt
    assert one["valid_bleu"] > 1
    assert one["valid_bleu"] == pytest.approx(
        (one["valid_mt_bleu_aa-bb"] + one["valid_mt_bleu_bb-aa"]) / 2, abs=0.01
    )
    for world in (2, 4):
        assert evaluated_on(world, world, reversal, tmp_path / str(world), learnt) == one
    generated = generate(
        reversal, checkpoint, "aa", "bb", "--gen-subset", "valid", "--beam", "5", *options
    )
    assert bleu(generated) == pytest.approx(one["valid_mt_bleu_aa-bb"], abs=0.01)


def test_bleu_of_chosen_directions(
    learnt: tuple[Path, dict[str, float], list[str]], reversal: Path, tmp_path: Path
) -> None:
    checkpoint, whole, options = learnt
    output = train(
        reversal, tmp_path / "save", "--max-tokens", "1000", "--max-update", "1", "--lr", "0",
        "--finetune-from-model", checkpoint, "--expert-parallel-size", "2", *EVAL, *options,
        "--eval-bleu-pairs", "bb-aa",
        world=2,
    )  # fmt: skip
    assert "mt_bleu_aa-bb" not in output
    score = whole["valid_mt_bleu_bb-aa"]
    assert log(output, "valid", "valid_mt_bleu_bb-aa")[-1] == score
    assert log(output, "valid", "valid_bleu")[-1] == pytest.approx(score, abs=0.01)
    assert log(output, "valid", "valid_loss")[-1] == whole["valid_loss"]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "size"), [(2, 1), (4, 2)])
def test_bleu_in_other_layouts(
    learnt: tuple[Path, dict[str, float], list[str]],
    reversal: Path,
    tmp_path: Path,
    world: int,
    size: int,
) -> None:
    assert evaluated_on(world, size, reversal, tmp_path / "run", learnt) == learnt[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--eval-bleu-args", "{beam: 4}"], "--eval-bleu-args {beam: 4} is no JSON object"),
        (["--eval-bleu-args", "[4]"], "--eval-bleu-args [4] is no JSON object"),
        (["--eval-bleu-detok", "none-such"], "--eval-bleu-detok none-such"),
        (["--multitask", "dae"], "--eval-bleu needs mt in --multitask"),
        (["--eval-bleu-pairs", "aa-cc"], "aa-cc is none of the directions aa-bb, bb-aa"),
    ],
)
def test_mistakes_are_one_line(
    configure: Callable[..., Any],
    reversal: Path,
    refusal: Callable[..., str],
    options: list[str],
    message: str,
) -> None:
    cfg = configure(reversal, "--eval-bleu", *options)
    assert message in refusal(lambda: tasks.setup_task(cfg.task).load_dataset("valid"))
