"""The losses of gates in the total."""

from __future__ import annotations

from argparse import Namespace
from statistics import fmean
from typing import Any

import pytest
import torch
from checkpoint.exported import build, dictionary

from zcode_plugin.criterions.objective_pass import ObjectivePass, run_objective
from zcode_plugin.data.objectives import parse_objectives
from zcode_plugin.moe.stats import LayerStats

TOKENS = torch.arange(4, 28).reshape(4, 6)


def batch(tokens_BS: torch.Tensor) -> dict[str, Any]:
    return {
        "net_input": {
            "src_tokens": tokens_BS,
            "src_lengths": torch.full((len(tokens_BS),), tokens_BS.size(1)),
            "prev_output_tokens": tokens_BS.roll(1, 1),
        },
        "target": tokens_BS,
        "ntokens": tokens_BS.numel(),
        "nsentences": len(tokens_BS),
    }


@pytest.mark.parametrize("balance", ["loss", "bias"])
def test_means_over_layers_of_all_passes_per_target_of_the_first_objective(balance: str) -> None:
    from zcode_plugin.criterions.multitask_summed_loss import MultitaskSummedLoss

    model, _ = build(moe_balance=balance)
    task = Namespace(objectives=parse_objectives("mt:1,dae:0.5"), target_dictionary=dictionary())
    criterion = MultitaskSummedLoss(task, moe_gate_loss_wt=0.3, moe_z_loss_wt=0.2)
    sample = {"mt": batch(TOKENS), "dae": batch(TOKENS[:2])}
    total, sample_size, _ = criterion(model, sample)
    passes: dict[str, ObjectivePass] = {
        name: run_objective(model, name, part, label_smoothing=0, padding=1)
        for name, part in sample.items()
    }
    weight = 0.3 if balance == "loss" else 0.0
    gate_losses = []
    for one in passes.values():
        layers = [*map(LayerStats.unpack, one.layers)]
        assert len(layers) == 2
        assert layers[0].z_loss != layers[1].z_loss
        gate_losses.append(fmean(
            weight * layer.balance_loss.item() + 0.2 * layer.z_loss.item() for layer in layers
        ))  # fmt: skip
    assert sample_size == 24
    wanted = passes["mt"].loss + 0.5 * passes["dae"].loss + 24 * sum(gate_losses)
    torch.testing.assert_close(total, wanted)
