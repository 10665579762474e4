"""Slices of weights: which entries are some, taken apart and joined again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from zcode_plugin.checkpoint.slices import join, sliced_dim, take_slices
from zcode_plugin.checkpoint.tensors import identity, put_together
from zcode_plugin.errors import UserError
from zcode_plugin.parallel.tensor import TensorSlicing

PATHS = [Path(f"x-model_part-{part}.pt") for part in range(3)]


@pytest.mark.parametrize(
    ("key", "dim"),
    [
        ("encoder.layers.0.self_attn.q_proj.weight", 0),
        ("decoder.layers.11.encoder_attn.v_proj.bias", 0),
        ("decoder.layers.0.self_attn.out_proj.weight", 1),
        ("decoder.layers.0.self_attn.out_proj.bias", None),
        ("encoder.layers.0.fc1.bias", 0),
        ("encoder.layers.0.fc2.weight", 1),
        ("encoder.layers.0.fc2.bias", None),
        ("encoder.layers.1.moe_layer.experts.17.fc1.weight", 0),
        ("encoder.layers.1.moe_layer.experts.17.fc2.weight", 1),
        ("encoder.layers.1.moe_layer.experts.17.fc2.bias", None),
        ("encoder.layers.1.moe_layer.residual.fc1.weight", 0),
        ("encoder.layers.1.moe_layer.residual.coefficient.weight", None),
        ("encoder.layers.1.moe_layer.gate.wg.weight", None),
        ("encoder.layers.1.final_layer_norm.weight", None),
        ("encoder.embed_tokens.weight", 0),
        ("decoder.output_projection.weight", 0),
        ("encoder.embed_positions.weight", None),
        ("heads.electra.generator.layers.0.fc1.weight", None),
    ],
)
def test_which_entries_are_sliced(key: str, dim: int | None) -> None:
    assert sliced_dim(key) == dim


def whole() -> dict[str, Tensor]:
    table = torch.rand(19, 4)  # 19 symbols: 7, 7 and 5
    return {
        "encoder.embed_tokens.weight": table,
        "decoder.output_projection.weight": table,
        "encoder.layers.0.fc1.weight": torch.rand(6, 4),
        "encoder.layers.0.fc2.weight": torch.rand(4, 6),
        "encoder.layers.0.fc2.bias": torch.rand(4),
    }


def slices(part: int) -> dict[str, Tensor]:
    own = dict(whole())
    rows = [7, 7, 5][part]
    for key in ("encoder.embed_tokens.weight", "decoder.output_projection.weight"):
        own[key] = torch.empty(rows, 4)
    own["encoder.layers.0.fc1.weight"] = torch.empty(2, 4)
    own["encoder.layers.0.fc2.weight"] = torch.empty(4, 2)
    return own


def test_slices_join_into_what_they_were_taken_from() -> None:
    weights = whole()
    parts = []
    for part in range(3):
        taken = dict(weights)
        take_slices(taken, slices(part), TensorSlicing(3, part))
        assert {key: value.shape for key, value in taken.items()} == {
            key: value.shape for key, value in slices(part).items()
        }
        parts.append(taken)
    joined = join(parts, PATHS)
    put_together(joined)
    assert joined.keys() == weights.keys()
    for key, weight in weights.items():
        assert torch.equal(joined[key], weight), key
    tied = ("encoder.embed_tokens.weight", "decoder.output_projection.weight")
    assert len({identity(joined[key]) for key in tied}) == 1


def test_replicas_that_differ_are_refused() -> None:
    parts = [slices(part) for part in range(3)]
    for part in parts:
        part["encoder.layers.0.fc2.bias"] = torch.zeros(4)
    parts[2]["encoder.layers.0.fc2.bias"] = torch.ones(4)
    with pytest.raises(UserError, match=r"x-model_part-2.pt: encoder.layers.0.fc2.bias differs"):
        join(parts, PATHS)
    del parts[1]["encoder.layers.0.fc2.bias"]
    with pytest.raises(UserError, match=r"one of them has no encoder\.layers\.0\.fc2\.bias"):
        join(parts, PATHS)
