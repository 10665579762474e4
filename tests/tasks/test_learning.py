"""A tiny task is learnt, translated and scored, with stock commands only."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from toy import TASK, bleu, command, generate, lines, records, run, train

LEARN = (
    "--max-update", "450", "--total-num-update", "450", "--warmup-updates", "100",
    "--lr-scheduler", "polynomial_decay", "--label-smoothing", "0.1", "--validate-interval", "100",
    "--log-interval", "100", "--sampling-method", "temperature", "--seed", "3",
)  # fmt: skip


class Learnt(NamedTuple):
    """A checkpoint of one process that has learnt the task, and what training logged."""

    path: Path
    log: str


@pytest.fixture(scope="module")
def learnt(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    save_dir = tmp_path_factory.mktemp("learnt")
    log = train(reversal, save_dir, *LEARN)
    return Learnt(save_dir / "checkpoint_last.pt", log)


@pytest.fixture(scope="module")
def translated(learnt: Learnt, reversal: Path) -> str:
    """What fairseq-generate makes of aa, all sentences in one batch."""
    return generate(reversal, learnt.path, "aa", "bb")


def test_one_process_learns_both_directions(
    learnt: Learnt, translated: str, reversal: Path
) -> None:
    assert bleu(translated) > 90
    assert bleu(generate(reversal, learnt.path, "bb", "aa")) > 90


@pytest.mark.slow
def test_two_ranks_learn_with_experts_spread_over_them(reversal: Path, tmp_path: Path) -> None:
    train(
        reversal, tmp_path, *LEARN, "--expert-parallel-size", "2", "--multitask", "mt:1,dae:0.2",
        "--multitask-max-tokens", "dae:200", "--max-tokens", "600", ranks=2,
    )  # fmt: skip
    merged = tmp_path / "merged.pt"
    run("zcode", "merge", tmp_path / "checkpoint_last-rank-0.pt", "--out", merged)
    assert bleu(generate(reversal, merged, "aa", "bb")) > 90


def test_a_translation_does_not_depend_on_its_batch(
    learnt: Learnt, translated: str, reversal: Path
) -> None:
    alone = generate(reversal, learnt.path, "aa", "bb", "--batch-size", "1")
    assert len(lines(alone, "H")) == 100
    for one, other in zip(lines(alone, "H"), lines(translated, "H"), strict=True):
        (name, score, text), (name_2, score_2, text_2) = one.split("\t"), other.split("\t")
        assert (name, text) == (name_2, text_2)
        assert float(score) == pytest.approx(float(score_2), abs=1e-4)


def test_validate_reports_the_loss_of_training(learnt: Learnt, reversal: Path) -> None:
    output = run(
        "fairseq-validate", reversal, *TASK, "--encoder-langtok", "tgt", "--path", learnt.path,
        "--cpu", "--max-tokens", "1000", "--log-format", "json", fresh=True,
    )  # fmt: skip
    *_, reported = records(output, '"valid_nll_loss"')
    *_, last = records(learnt.log, '"valid_nll_loss"')
    names = [name for name in last if name.startswith("valid_") and "loss" in name]
    for name in names:
        assert reported[name] == last[name], name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gen-subset", "test9"], "has no test9.aa-bb.* nor test9.bb-aa.*"),
        (["-t", "cc"], "language cc of the pair aa-cc is not in --langs"),
    ],
)
def test_mistakes_of_a_translation_run_are_one_line(
    learnt: Learnt, reversal: Path, options: list[str], message: str
) -> None:
    done = command(
        "fairseq-generate", reversal, *TASK, "-s", "aa", "-t", "bb", "--langs", "aa,bb",
        "--encoder-langtok", "tgt", "--path", learnt.path, "--cpu", *options,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
