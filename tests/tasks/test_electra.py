"""ELECTRA: labels and losses by their definition, who learns from whom, and that it is learnt."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import train

FirstBatch = Callable[..., tuple[Any, ...]]


def test_all_tokens_to_be_told_are_masked(first_batch: FirstBatch, reversal: Path) -> None:
    task, _, _, sample = first_batch(reversal, "--multitask", "electra", "--mlm-random", "0.5")
    batch = sample["electra"]
    source = batch["net_input"]["src_tokens"]
    masked = source == task.dictionary.index("<mask>")
    assert torch.equal(masked, batch["net_input"]["masked_tokens"])
    assert batch["nplaces"] == (source != task.dictionary.pad()).sum()


def test_only_in_training_are_proposals_drawn_anew(first_batch: FirstBatch, reversal: Path) -> None:
    """Losses of validations can be compared, whatever was drawn before."""
    _, model, _, sample = first_batch(reversal, "--multitask", "electra", "--mlm-mask", "0.9")
    net_input = sample["electra"]["net_input"]
    for training in (False, True):
        model.train(training)
        first, second = (model(**net_input)[1]["proposed"] for _ in range(2))
        assert torch.equal(first, second) != training


def test_losses_are_those_of_the_definition(first_batch: FirstBatch, reversal: Path) -> None:
    task, model, criterion, sample = first_batch(
        reversal, "--multitask", "electra:0.5", "--moe-gate-loss-wt", "0",
        "--electra-discriminator-wt", "7", "--label-smoothing", "0.1", "--mlm-mask", "0.5",
    )  # fmt: skip
    model.eval()
    batch, net_input = sample["electra"], sample["electra"]["net_input"]
    criterion.normalizers = {"electra": 2.0, "electra.false": 3.0}
    with torch.no_grad():
        torch.manual_seed(5)
        scores, extra = model(**net_input)
        torch.manual_seed(5)
        loss, sample_size, logs = criterion(model, sample)
    told = -scores.log_softmax(1).gather(1, batch["target"].unsqueeze(1)).sum()
    proposed, answers = iter(extra["proposed"].tolist()), iter(batch["target"].tolist())
    wanted, false, right = 0.0, 0, 0
    for row, tokens in enumerate(net_input["src_tokens"].tolist()):
        for place, token in enumerate(tokens):
            if token == task.dictionary.pad():
                continue
            is_masked = bool(net_input["masked_tokens"][row, place])
            is_false = is_masked and next(proposed) != next(answers)
            score = float(extra["false_scores"][row, place])
            wanted += math.log1p(math.exp(-score if is_false else score))
            false += is_false
            right += (score > 0) == is_false
    assert false > 0
    assert int(logs["electra_false"]) == false
    assert int(logs["electra_false_correct"]) == right
    assert float(logs["electra_false_loss"]) == pytest.approx(wanted, rel=1e-5)
    assert float(logs["electra_nll_loss"]) == pytest.approx(float(told), rel=1e-5)
    assert float(loss) == pytest.approx(0.5 * (2 * float(told) + 7 * 3 * wanted), rel=1e-5)
    assert sample_size == batch["ntokens"]


def test_a_loss_that_is_no_number_is_told_as_one(first_batch: FirstBatch, reversal: Path) -> None:
    """The draws pass it on: the trainer says what is wrong, or skips the update."""
    _, model, criterion, sample = first_batch(reversal, "--multitask", "electra")
    with torch.no_grad():
        model.encoder.embed_tokens.weight[4:] = math.nan
    assert math.isnan(criterion(model, sample)[0])


def test_the_generator_learns_nothing_from_the_discriminator(
    first_batch: FirstBatch, reversal: Path
) -> None:
    _, model, criterion, sample = first_batch(reversal, "--multitask", "electra")
    criterion.normalizers = {"electra": 0.0, "electra.false": 1.0}
    criterion(model, sample)[0].backward()
    generator = model.heads["electra"].generator
    assert all(p.grad is None or not p.grad.any() for p in generator.parameters())
    assert model.heads["electra"].dense.weight.grad.any()
    assert model.encoder.layers[0].fc1.weight.grad.any()
    model.zero_grad()
    criterion.normalizers = {"electra": 1.0, "electra.false": 0.0}
    criterion(model, sample)[0].backward()
    assert all(p.grad is not None for p in generator.parameters())
    assert not model.heads["electra"].dense.weight.grad.any()


@pytest.mark.parametrize(
    ("size", "heads", "width", "ffn"), [("0.25", 1, 16, 32), ("1", 4, 64, 128)]
)
def test_the_size_of_the_generator(
    first_batch: FirstBatch, reversal: Path, size: str, heads: int, width: int, ffn: int
) -> None:
    _, model, _, _ = first_batch(
        reversal, "--multitask", "electra", "--electra-generator-size", size
    )
    generator = model.heads["electra"].generator
    assert len(generator.layers) == len(model.encoder.layers)
    for layer in generator.layers:
        assert layer.self_attn.num_heads == heads
        assert layer.fc1.weight.shape == (ffn, width)


@pytest.mark.parametrize("size", ["0", "1.5"])
def test_an_impossible_size_is_refused(
    first_batch: FirstBatch, reversal: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        first_batch(reversal, "--multitask", "electra", "--electra-generator-size", size)
    assert stopped.value.code == 2
    message = f"--electra-generator-size {float(size)} must lie in (0, 1]"
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_discriminator_makes_fewer_errors_than_the_majority(
    alphabet: Path, tmp_path: Path
) -> None:
    """Who always says that a token is true is wrong at each false one."""
    output = train(
        alphabet, tmp_path, "--multitask", "electra", "--langs", "aa", "--max-update", "200",
        "--log-interval", "100", "--mlm-single-tokens", "--mlm-mask", "0.3",
    )  # fmt: skip
    [*_, last] = [line for line in output.splitlines() if '"valid_electra_false_share"' in line]
    values = json.loads(last[last.index("{") :])
    false = float(values["valid_electra_false_share"])
    wrong = 100 - float(values["valid_electra_false_accuracy"])
    assert false > 1, "the generator leaves nothing to find"
    assert wrong < 0.8 * false


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_that_stands_in_for_none_counts_nothing(
    first_batch: FirstBatch, reversal: Path, training: bool
) -> None:
    task, model, criterion, sample = first_batch(reversal, "--multitask", "mt,dae,mlm,electra")
    model.train(training)
    real = criterion(model, sample)[2]
    empty = task.dataset("train").collater([])
    loss, sample_size, logs = criterion(model, empty)
    loss.backward()
    assert sample_size == 0
    assert [*logs] == [*real], "ranks add up their logs by place"
    assert not [key for key, value in logs.items() if float(value) and not key.endswith("_place")]
