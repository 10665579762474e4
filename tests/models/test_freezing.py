"""Training a part of a model."""

from __future__ import annotations

import pytest
import torch
from checkpoint.exported import build
from torch import Tensor


def gradients(words: str, anew: bool) -> dict[str, Tensor | None]:
    """Of what is trained, with activations kept or computed anew."""
    model, _ = build(freeze_except=words, checkpoint_activations=anew, dropout=0.0)
    tokens_BS = torch.arange(4, 28).reshape(4, 6)
    lengths_B = torch.full((4,), 6)
    model(tokens_BS, lengths_B, tokens_BS.roll(1, 1))[0].square().mean().backward()
    return {name: one.grad for name, one in model.named_parameters() if one.requires_grad}


@pytest.mark.parametrize("words", ["gate", "experts", "gate,layer_norm"])
def test_activations_that_are_computed_anew_give_the_same_gradients(words: str) -> None:
    """Frozen embeddings leave the first layer an input without a gradient."""
    kept, anew = (gradients(words, checkpointing) for checkpointing in (False, True))
    assert kept.keys() == anew.keys()
    for name, grad in kept.items():
        assert grad is not None
        torch.testing.assert_close(anew[name], grad, msg=name)
