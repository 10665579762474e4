"""Slices of weights: which entries are some, taken apart and joined again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zcode_plugin.checkpoint.optimizer import Moments
from zcode_plugin.checkpoint.slices import (
    check_divides,
    join,
    join_moments,
    moment_slice_of,
    slice_of,
    sliced_dim,
    take_slices,
)
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


def divided(weights: dict[str, Any], size: int) -> list[dict[str, Any]]:
    return [
        {key: slice_of(key, value, TensorSlicing(size, rank)) for key, value in weights.items()}
        for rank in range(size)
    ]


def divided_moments(moments: Moments, size: int) -> list[Moments]:
    return [
        {
            slot: {
                key: moment_slice_of(key, value, TensorSlicing(size, rank))
                for key, value in entries.items()
            }
            for slot, entries in moments.items()
        }
        for rank in range(size)
    ]


@given(size=st.sampled_from([1, 2, 4]), symbols=st.integers(1, 21), width=st.sampled_from([4, 8]))
def test_what_is_divided_and_joined_is_as_before(size: int, symbols: int, width: int) -> None:
    """Weights and the state of their optimizer, for numbers of symbols that T does not divide."""
    weights = {
        "encoder.embed_tokens.weight": torch.rand(symbols, 3),
        "encoder.layers.1.moe_layer.experts.3.fc1.bias": torch.rand(width),
        "encoder.layers.1.moe_layer.experts.3.fc2.weight": torch.rand(3, width),
        "encoder.layers.1.moe_layer.gate.wg.weight": torch.rand(4, 3),
    }
    moments = {
        "exp_avg": {key: torch.rand_like(value) for key, value in weights.items()},
        "step": dict.fromkeys(weights, 7),
    }
    paths = [Path(f"x-model_part-{part}.pt") for part in range(size)]
    parts, moment_parts = divided(weights, size), divided_moments(moments, size)
    for part, own in zip(parts, moment_parts, strict=True):
        assert len(part["encoder.layers.1.moe_layer.experts.3.fc1.bias"]) == width // size
        # In memory every rank has as many rows of symbols; they are rounded up.
        assert len(own["exp_avg"]["encoder.embed_tokens.weight"]) == -(-symbols // size)
    joined = [
        join(parts, paths),
        *join_moments(moment_parts, parts, paths).values(),
    ]
    for found, expected in zip(joined, (weights, *moments.values()), strict=True):
        put_together(found)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, Tensor):
                assert torch.equal(found[key], value), key
            else:
                assert found[key] == value


def test_states_that_differ_or_are_not_of_each_weight_are_refused() -> None:
    key = "encoder.layers.0.fc2.bias"
    parts, steps = divided(whole(), 3), {"step": dict.fromkeys(whole(), 7)}
    moments = divided_moments(steps, 3)
    moments[2]["step"][key] = 8
    with pytest.raises(UserError, match=r"x-model_part-2.pt: encoder.layers.0.fc2.bias differs"):
        join_moments(moments, parts, PATHS)
    moments = divided_moments(steps, 3)
    moments[1]["exp_avg"] = {}
    with pytest.raises(UserError, match="their optimizers differ"):
        join_moments(moments, parts, PATHS)
    factored = [{"exp_avg_sq_row": {"encoder.layers.0.fc1.weight": torch.zeros(2)}}] * 3
    with pytest.raises(UserError, match=r"part-0.pt: exp_avg_sq_row of .*fc1.weight has the shape"):
        join_moments(factored, parts, PATHS)


def test_sizes_that_are_divided_evenly() -> None:
    options = {"encoder_attention_heads": 4, "encoder_ffn_embed_dim": 6}
    check_divides(options, 2)
    with pytest.raises(UserError, match="3 must divide --encoder-attention-heads 4: change"):
        check_divides(options, 3)
    with pytest.raises(UserError, match="4 must divide --encoder-ffn-embed-dim 6: change"):
        check_divides(options, 4)
