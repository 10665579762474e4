"""How objectives, and the corpora of each, are weighed and told apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import metrics
from optimizers import adam

FirstBatch = Callable[..., tuple[Any, ...]]


def test_gradients_are_the_weighted_sum_of_separate_passes(
    first_batch: FirstBatch, reversal: Path
) -> None:
    _, model, criterion, sample = first_batch(
        reversal, "--multitask", "mt:2,dae:0.5,mlm:0.3", "--dropout", "0", "--moe-jitter-eps", "0",
        "--moe-token-priority", "position",
        # A pass alone would weigh its gates' losses by its own targets.
        "--moe-gate-loss-wt", "0",
    )  # fmt: skip
    criterion.normalizers = {"mt": 1.0, "dae": 1.5, "mlm": 4.0}

    def gradients(names: list[str]) -> dict[str, Any]:
        model.zero_grad()
        part = {name: sample[name] for name in names}
        criterion(model, part)[0].backward()
        return {
            name: parameter.grad.clone()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }

    together = gradients(["mt", "dae", "mlm"])
    parts = [gradients([name]) for name in ("mt", "dae", "mlm")]
    for name, grad in together.items():
        expected = sum(part[name] for part in parts if name in part)
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4, msg=name)


def test_a_weight_follows_the_update(first_batch: FirstBatch, reversal: Path) -> None:
    """In training one of weight 0 costs nothing; in validation all have the last weights."""
    task, model, criterion, sample = first_batch(
        reversal, "--multitask", "mt:1,dae:0@0,2@10", "--moe-gate-loss-wt", "0"
    )
    optimizer = adam(model.parameters())
    for update, weight in ((0, 0.0), (5, 1.0), (10, 2.0), (99, 2.0)):
        task.train_step(sample, model, criterion, optimizer, update_num=update)
        model.eval()
        loss, _, logs = criterion(model, sample)
        share = float(logs["dae_loss"]) * criterion.normalizers["dae"]
        assert float(logs["dae_loss"]) > 0
        assert float(loss.detach()) == pytest.approx(float(logs["mt_loss"]) + 2 * share)
        model.train()
        _, _, logs = criterion(model, sample)
        assert (logs["dae_ntokens"] > 0) == (weight > 0)


def test_an_objective_that_has_ended_is_out_of_the_sum(
    first_batch: FirstBatch, reversal: Path
) -> None:
    """Stock empties its meters at each log interval, and keeps them."""
    task, model, criterion, sample = first_batch(reversal, "--multitask", "mt:1,dae:1@0,0@3")
    optimizer = adam(model.parameters())
    with metrics.aggregate(new_root=True) as meters:
        for update in (0, 5):
            meters.reset()
            _, _, logs = task.train_step(sample, model, criterion, optimizer, update_num=update)
            criterion.reduce_metrics([logs])
            parts = [meters[f"{name}_loss"].avg for name in ("mt", "dae")]
            assert (parts[1] is None) == (update == 5)
            assert meters.get_smoothed_value("loss") == pytest.approx(
                sum(float(part) for part in parts if part is not None), abs=1e-3
            )
            assert meters.get_smoothed_value("nll_loss") == pytest.approx(
                float(meters["mt_nll_loss"].avg)
            )
        meters.reset()  # and nothing is logged where a loss scaler skipped every update
        assert math.isnan(meters.get_smoothed_value("loss"))


def test_normalization_by_tokens(first_batch: FirstBatch, reversal: Path) -> None:
    for flag, same in (("objectives", False), ("tokens", True)):
        task, model, criterion, sample = first_batch(
            reversal, "--multitask", "mt,mlm", "--multitask-normalization", flag
        )
        optimizer = adam(model.parameters())
        task.train_step(sample, model, criterion, optimizer, update_num=0)
        factors = criterion.normalizers
        assert (factors["mt"] == pytest.approx(factors["mlm"])) == same


def test_validation_has_the_loss_of_each_direction_and_language(
    first_batch: FirstBatch, reversal: Path
) -> None:
    """The parts add up to the whole, and equal the loss of a batch of that corpus alone."""
    task, model, criterion, sample = first_batch(
        reversal, "--multitask", "mt,dae,mlm", "--label-smoothing", "0.1"
    )
    model.eval()
    with torch.no_grad():
        _, _, logs = criterion(model, sample)
    for objective, corpora in {"mt": ["aa-bb", "bb-aa"], "dae": ["aa", "bb"]}.items():
        batch = sample[objective]
        whole = sum(float(logs[f"{objective}_nll_{name}"]) for name in corpora)
        assert whole == pytest.approx(float(logs[f"{objective}_nll_loss"]), rel=1e-5)
        for name in corpora:
            rows = [place for place, corpus in enumerate(batch["corpora"]) if corpus == name]
            assert rows
            inputs = {key: value[rows] for key, value in batch["net_input"].items()}
            with torch.no_grad():
                lprobs = model(**inputs)[0].log_softmax(-1)
            target = batch["target"][rows].unsqueeze(2)
            told = lprobs.gather(2, target)[target != task.dictionary.pad()]
            assert float(logs[f"{objective}_targets_{name}"]) == len(told)
            assert float(logs[f"{objective}_nll_{name}"]) == pytest.approx(
                -float(told.sum()), rel=1e-4
            )
    counts = [float(logs[f"mlm_targets_{name}"]) for name in ("aa", "bb")]
    assert sum(counts) == sample["mlm"]["ntokens"]
    with metrics.aggregate(new_root=True) as meters:
        criterion.reduce_metrics([logs])
    assert meters["mt_nll_loss_aa-bb"].avg == pytest.approx(
        float(logs["mt_nll_aa-bb"]) / float(logs["mt_targets_aa-bb"]) / math.log(2)
    )
    model.train()
    assert not [name for name in criterion(model, sample)[2] if "aa-bb" in name]
