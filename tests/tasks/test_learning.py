"""A tiny task is learnt, translated and scored, with stock commands only."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import TASK, bleu, command, generate, lines, run, train

LEARN = (
    "--max-update", "450", "--total-num-update", "450", "--warmup-updates", "100",
    "--lr-scheduler", "polynomial_decay", "--label-smoothing", "0.1", "--validate-interval", "100",
    "--log-interval", "100", "--sampling-method", "temperature", "--seed", "3",
)  # fmt: skip


@pytest.fixture(scope="module")
def learnt(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one process that has learnt the task."""
    save_dir = tmp_path_factory.mktemp("learnt")
    train(reversal, save_dir, *LEARN)
    return save_dir / "checkpoint_last.pt"


@pytest.mark.parametrize(("src", "tgt"), [("aa", "bb"), ("bb", "aa")])
def test_one_process_learns_both_directions(
    learnt: Path, reversal: Path, src: str, tgt: str
) -> None:
    assert bleu(generate(reversal, learnt, src, tgt)) > 90


@pytest.mark.slow
def test_two_ranks_learn_with_experts_spread_over_them(reversal: Path, tmp_path: Path) -> None:
    train(
        reversal, tmp_path, *LEARN, "--expert-parallel-size", "2", "--multitask", "mt:1,dae:0.2",
        "--multitask-max-tokens", "dae:200", "--max-tokens", "600", ranks=2,
    )  # fmt: skip
    merged = tmp_path / "merged.pt"
    run("zcode", "merge", tmp_path / "checkpoint_last-rank-0.pt", "--out", merged)
    assert bleu(generate(reversal, merged, "aa", "bb")) > 90


def test_a_translation_does_not_depend_on_its_batch(learnt: Path, reversal: Path) -> None:
    alone = generate(reversal, learnt, "aa", "bb", "--batch-size", "1")
    together = generate(reversal, learnt, "aa", "bb", "--batch-size", "64")
    assert len(lines(alone, "H")) == 100
    for one, other in zip(lines(alone, "H"), lines(together, "H"), strict=True):
        (name, score, text), (name_2, score_2, text_2) = one.split("\t"), other.split("\t")
        assert (name, text) == (name_2, text_2)
        assert float(score) == pytest.approx(float(score_2), abs=1e-4)


def test_interactive_gives_what_generate_gives(learnt: Path, reversal: Path) -> None:
    source = reversal.parent / "test.aa"
    output = run(
        "fairseq-interactive", reversal, *TASK, "-s", "aa", "-t", "bb", "--encoder-langtok", "tgt",
        "--path", learnt, "--cpu", "--max-len-b", "10", "--input", source, "--buffer-size", "100",
        "--max-tokens", "1000",
    )  # fmt: skip
    generated = generate(reversal, learnt, "aa", "bb")
    for one, other in zip(lines(output, "H"), lines(generated, "H"), strict=True):
        assert one.split("\t")[2] == other.split("\t")[2]


def test_validate_reports_the_loss_of_training(learnt: Path, reversal: Path) -> None:
    output = run(
        "fairseq-validate", reversal, *TASK, "--encoder-langtok", "tgt", "--path", learnt, "--cpu",
        "--max-tokens", "1000",
    )  # fmt: skip
    assert "nll_loss" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--langs", "bb,aa"], "the checkpoint's languages are aa,bb, this run's are bb,aa"),
        (["--gen-subset", "test9"], "has no test9.aa-bb.* nor test9.bb-aa.*"),
        (["-t", "cc"], "language cc of the pair aa-cc is not in --langs"),
    ],
)
def test_mistakes_of_a_translation_run_are_one_line(
    learnt: Path, reversal: Path, options: list[str], message: str
) -> None:
    done = command(
        "fairseq-generate", reversal, *TASK, "-s", "aa", "-t", "bb", "--langs", "aa,bb",
        "--encoder-langtok", "tgt", "--path", learnt, "--cpu", *options,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
