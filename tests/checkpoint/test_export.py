"""Exported models compute what fairseq's do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.exported import build, checkpoint, export, load
from torch import Tensor

OPTION_SETS: dict[str, dict[str, Any]] = {
    "pre-norm": {},
    "post-norm": {"encoder_normalize_before": False, "decoder_normalize_before": False},
    "learned positions": {"encoder_learned_pos": True, "decoder_learned_pos": True},
    "top-2 of different counts": {"moe_top_k": 2, "moe_expert_count": "4,2", "moe_freq": 2},
    "not normalised": {"moe_top_k": 2, "moe_normalize_gate_prob": "false"},
    "normalised top-1": {"moe_normalize_gate_prob": "true"},
    "residual": {"moe_residual": True, "activation_fn": "gelu"},
    "bias": {"moe_balance": "bias", "moe_top_k": 2},
    "hash": {"moe_gate": "hash", "moe_top_k": 2},
    "random": {"moe_gate": "random"},
    "dense": {"moe_freq": 0, "activation_fn": "gelu_fast"},
    "experts everywhere": {"moe_freq": 1, "activation_fn": "tanh", "no_decoder_final_norm": True},
    "no shared embeddings": {"share_all_embeddings": False, "layernorm_embedding": True},
    "two widths": {
        "share_all_embeddings": False,
        "share_decoder_input_output_embed": True,
        "decoder_embed_dim": 20,
        "decoder_ffn_embed_dim": 36,
        "no_scale_embedding": True,
    },
    "no positions": {"no_token_positional_embeddings": True, "activation_fn": "relu_squared"},
}


def batch() -> tuple[Tensor, Tensor]:
    """Sources padded on the left, as fairseq does it, and targets padded on the right."""
    draw = torch.Generator().manual_seed(5)
    source = torch.randint(4, 36, (3, 9), generator=draw)
    target = torch.randint(4, 36, (3, 7), generator=draw)
    source[:, -1], target[:, 0] = 2, 2
    source[1, :4], target[1, 4:] = 1, 1
    source[2, :1], target[2, 6:] = 1, 1
    return source, target


@pytest.mark.parametrize("options", OPTION_SETS.values(), ids=OPTION_SETS)
@torch.no_grad()
def test_logits_are_those_of_fairseq(options: dict[str, Any], tmp_path: Path) -> None:
    model, args = build(**options)
    export(checkpoint(model, args), tmp_path / "exported")
    exported, _ = load(tmp_path / "exported")
    source, target = batch()
    is_token = target != 1
    lengths = (source != 1).sum(1)
    wanted = model(source, lengths, target)[0][is_token]
    found = exported(input_ids=source, decoder_input_ids=target).logits[is_token]
    assert wanted.std() > 0.3  # a difference would show
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    # Padding on the other side, told by a mask.
    right = torch.stack([row.roll(-int((row == 1).sum())) for row in source])
    found = exported(right, right != 1, target, use_cache=False).logits[is_token]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["top-2 of different counts", "learned positions", "hash"])
@torch.no_grad()
def test_a_step_with_a_cache_is_that_of_the_whole(name: str, tmp_path: Path) -> None:
    model, args = build(**OPTION_SETS[name])
    export(checkpoint(model, args), tmp_path / "exported")
    exported, _ = load(tmp_path / "exported")
    source, target = batch()
    target = target[:1]
    source = source[:1]
    whole = exported(source, decoder_input_ids=target, use_cache=False).logits
    field = "cache" if "cache" in exported(source, decoder_input_ids=target) else "past_key_values"
    cache, steps = None, []
    for token in target.split([3, 1, 1, 1, 1], dim=1):
        output = exported(source, decoder_input_ids=token, past_key_values=cache)
        cache = output[field]
        steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=0)
