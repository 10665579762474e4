"""Masked language modelling: what is learnt, from what, and what becomes of its head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import bleu, generate, train

from zcode_plugin.checkpoint import io

FirstBatch = Callable[..., tuple[Any, ...]]


@pytest.mark.parametrize("side", [(), ("--left-pad-source",)], ids=["left", "right"])
def test_a_batch_hides_tokens_and_asks_for_them(
    first_batch: FirstBatch, reversal: Path, side: tuple[str, ...]
) -> None:
    task, _, _, sample = first_batch(
        reversal, "--multitask", "mlm", "--encoder-langtok", "tgt",
        "--mlm-random", "0", "--mlm-keep", "0", *side,
    )  # fmt: skip
    batch = sample["mlm"]
    source, masked = batch["net_input"]["src_tokens"], batch["net_input"]["masked_tokens"]
    mask = task.dictionary.index("<mask>")
    assert torch.equal(source == mask, masked)
    assert masked.any(1).all()
    assert batch["ntokens"] == batch["target"].numel() == masked.sum()
    special = {task.dictionary.pad(), task.dictionary.eos(), mask, *task.language_tokens}
    assert not special & {*batch["target"].tolist()}
    # Put back, the sentences are those of the data.
    restored = source.clone()
    restored[masked] = batch["target"]
    for row, lang, index in zip(restored, batch["corpora"], batch["id"], strict=True):
        words = row[(row != task.dictionary.pad())].tolist()
        corpus = task.dataset("train").streams[0].corpus(int(index))
        number = int(task.dataset("train").streams[0].row_of[int(index)])
        assert words[0] == task.dictionary.index(f"__{lang}__")
        assert words[1:] == corpus.tokens[number].tolist()


def test_the_loss_is_that_of_hidden_tokens_alone(first_batch: FirstBatch, reversal: Path) -> None:
    """By the definition, place by place; and weighted in a sum with mt."""
    _, model, criterion, sample = first_batch(
        reversal, "--multitask", "mt:2,mlm:0.5", "--moe-gate-loss-wt", "0",
        "--label-smoothing", "0.1",
    )  # fmt: skip
    model.eval()
    batch = sample["mlm"]
    with torch.no_grad():
        encoded = model.encoder(batch["net_input"]["src_tokens"], batch["net_input"]["src_lengths"])
        states = encoded["encoder_out"][0].transpose(0, 1)
        wanted, right, answers = 0.0, 0, iter(batch["target"].tolist())
        for sentence, place in batch["net_input"]["masked_tokens"].nonzero().tolist():
            answer = next(answers)
            head = model.heads["mlm"]
            hidden = head.layer_norm(head.activation_fn(head.dense(states[sentence, place])))
            scores = model.encoder.embed_tokens.weight @ hidden + head.bias
            wanted -= float(scores.log_softmax(0)[answer])
            right += int(scores.argmax()) == answer
        translation, _, mt_logs = criterion(model, {"mt": sample["mt"]})
        criterion.normalizers = {"mt": 1.0, "mlm": 3.0}
        loss, sample_size, logs = criterion(model, sample)
    assert float(logs["mlm_loss"]) == pytest.approx(wanted, rel=1e-5)
    assert float(logs["mlm_nll_loss"]) == pytest.approx(wanted, rel=1e-5)
    assert int(logs["mlm_correct"]) == right
    assert sample_size == sample["mt"]["ntokens"]
    assert float(loss) == pytest.approx(float(translation) + 0.5 * 3.0 * wanted, rel=1e-5)
    assert float(translation) == pytest.approx(2 * float(mt_logs["mt_loss"]), rel=1e-5)


@pytest.mark.slow
def test_alone_it_beats_the_most_frequent_word_threefold(alphabet: Path, tmp_path: Path) -> None:
    output = train(
        alphabet, tmp_path, "--multitask", "mlm", "--langs", "aa", "--max-update", "200",
        "--log-interval", "100", "--best-checkpoint-metric", "mlm_accuracy",
        "--maximize-best-checkpoint-metric", "--mlm-single-tokens",
    )  # fmt: skip
    words = (alphabet.parent / "valid.aa").read_text().split()
    unigram = 100 * max(Counter(words).values()) / len(words)
    best = io.load_options(tmp_path / "checkpoint_best.pt")["extra_state"]["best"]
    assert best > 3 * unigram, output[-2000:]


@pytest.mark.slow
def test_beside_translation_and_without_its_head_in_translation(
    reversal: Path, tmp_path: Path
) -> None:
    """A checkpoint with the head translates, trains on without it, and takes it up again."""
    budget = ("--multitask-max-tokens", "mlm:200", "--log-interval", "100", "--seed", "3")
    learn = ("--max-update", "500", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "100")
    output = train(
        reversal, tmp_path / "both", "--multitask", "mt:1,mlm:0.2", *budget, *learn,
    )  # fmt: skip
    assert '"valid_mlm_accuracy"' in output
    assert '"train_mlm_nll_loss"' in output
    both = tmp_path / "both" / "checkpoint_last.pt"
    translated = generate(reversal, both, "aa", "bb")
    assert "the head of mlm: left out of the checkpoint, no objective needs it" in translated
    assert bleu(translated) > 80
    alone = train(
        reversal, tmp_path / "mt", "--finetune-from-model", both, "--max-update", "1",
        "--validate-interval", "9",
    )  # fmt: skip
    assert "the head of mlm: left out of the checkpoint" in alone
    last = tmp_path / "mt" / "checkpoint_last.pt"
    assert not [name for name in io.load(last)["model"] if name.startswith("heads.")]
    again = train(
        reversal, tmp_path / "again", "--finetune-from-model", last, "--max-update", "1",
        "--multitask", "mt,mlm", *budget, "--validate-interval", "9",
    )  # fmt: skip
    assert "the head of mlm: not in the checkpoint, begins anew" in again
