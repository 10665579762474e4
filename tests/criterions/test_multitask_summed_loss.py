"""What the criterion logs of the experts: of all passes, and of each objective's own."""

from __future__ import annotations

import math
from argparse import Namespace

import pytest
import torch
from fairseq import metrics
from torch import Tensor

from zcode_plugin.data.objectives import parse_objectives
from zcode_plugin.moe.stats import LayerStats


def layer(tokens: int, dropped: int, balance: float) -> Tensor:
    """Statistics of a layer of two experts that share the tokens equally."""
    return LayerStats(
        *(torch.tensor(float(value)) for value in (balance, 0, tokens, dropped, tokens)),
        load_E=torch.full((2,), tokens / 2),
    ).pack()


def logged(text: str, *ranks: dict[str, list[Tensor]], standing_in: str = "") -> dict[str, float]:
    """Metrics of what ranks log; batches of the objective `standing_in` have no targets."""
    from zcode_plugin.criterions.multitask_summed_loss import MultitaskSummedLoss, _empty_log

    objectives = parse_objectives(text)
    criterion = MultitaskSummedLoss(Namespace(objectives=objectives))
    outputs = []
    for stats in ranks:
        log = _empty_log(objectives, None, {})
        log.update({f"{name}_ntokens": int(name != standing_in) for name in stats})
        criterion._log_experts(log, stats)
        outputs.append(log)
    assert len({frozenset(log) for log in outputs}) == 1, "ranks add up their logs key by key"
    with metrics.aggregate(new_root=True) as meters:
        criterion.reduce_metrics(outputs)
    return {name: meters[name].avg for name in meters if hasattr(meters[name], "avg")}


def test_each_objective_has_metrics_of_its_own() -> None:
    values = logged(
        "mt:1,dae:1",
        {"mt": [layer(80, 8, 1.0)], "dae": [layer(20, 8, 2.0)]},
        {"mt": [layer(80, 0, 1.5)], "dae": [layer(20, 4, 2.0)]},
    )
    assert values["overflow_expert1"] == pytest.approx(100 * 20 / 200)
    assert values["mt_overflow_expert1"] == pytest.approx(100 * 8 / 160)
    assert values["dae_overflow_expert1"] == pytest.approx(100 * 12 / 40)
    assert values["moe_gate_loss"] == pytest.approx((80 * 1 + 80 * 1.5 + 40 * 2) / 200)
    assert values["mt_moe_gate_loss"] == pytest.approx(1.25)
    assert values["dae_moe_gate_loss"] == pytest.approx(2.0)


def test_a_batch_of_one_objective_logs_nothing_of_the_other() -> None:
    """As in validation, where the batches of ranks may be of different objectives."""
    values = logged("mt:1,dae:1", {"mt": [layer(80, 8, 1.0)]}, {"mt": [layer(80, 8, 1.0)]})
    assert values["mt_overflow_expert1"] == pytest.approx(10)
    assert "dae_overflow_expert1" not in values
    mixed = logged("mt:1,dae:1", {"mt": [layer(80, 8, 1.0)]}, {"dae": [layer(40, 8, 1.0)]})
    assert mixed["dae_overflow_expert1"] == pytest.approx(20)


def test_a_batch_that_stands_in_for_another_counts_nothing() -> None:
    stats = {"mt": [layer(80, 8, 1.0)], "dae": [layer(1, 1, 2.0)]}
    values = logged("mt:1,dae:1", stats, standing_in="dae")
    assert values["overflow_expert1"] == values["mt_overflow_expert1"] == pytest.approx(10)
    assert "dae_overflow_expert1" not in values


def test_one_objective_needs_no_second_set() -> None:
    values = logged("mt:1", {"mt": [layer(80, 8, 1.0)]})
    assert values["overflow_expert1"] == pytest.approx(10)
    assert not [name for name in values if name.startswith("mt_moe") or "mt_overflow" in name]


def test_logs_are_in_bits_per_target_and_percent() -> None:
    """Of two ranks alike; the first objective is the first in place, not by its name."""
    from zcode_plugin.criterions.multitask_summed_loss import MultitaskSummedLoss

    bit = math.log(2)
    log = {
        "mt_place": 0, "mt_loss": 8 * bit, "mt_nll_loss": 6 * bit, "mt_ntokens": 2, "mt_weight": 4,
        "mlm_place": 1, "mlm_loss": 30 * bit, "mlm_nll_loss": 20 * bit, "mlm_ntokens": 10,
        "mlm_weight": 5, "mlm_correct": 4,
        "electra_place": 2, "electra_loss": 12 * bit, "electra_nll_loss": 10 * bit,
        "electra_ntokens": 4, "electra_weight": 4, "electra_nplaces": 20, "electra_false": 3,
        "electra_false_weight": 140, "electra_false_loss": 10 * bit, "electra_false_correct": 18,
    }  # fmt: skip
    with metrics.aggregate(new_root=True) as meters:
        MultitaskSummedLoss.reduce_metrics([log, log])
    found = {name: value for name, value in meters.get_smoothed_values().items() if name[0] != "_"}
    assert found == pytest.approx({
        "mt_loss": 4, "mt_nll_loss": 3, "mlm_loss": 3, "mlm_nll_loss": 2, "mlm_accuracy": 40,
        "electra_loss": 3 + 7 * 0.5, "electra_nll_loss": 2.5, "electra_false_loss": 0.5,
        "electra_false_accuracy": 90, "electra_false_share": 15,
        "loss": 2 * 4 + 0.5 * 3 + 1 * 6.5, "nll_loss": 3, "ppl": 8,
    })  # fmt: skip
