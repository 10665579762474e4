"""Heads of objectives that come and go between a checkpoint and a model."""

from __future__ import annotations

import torch
from checkpoint.exported import build

from zcode_plugin.models.heads import fit_heads


def test_a_new_head_leaves_the_embeddings_that_it_shares_as_they_are_loaded() -> None:
    old, _ = build(objectives=["mt"])
    model, _ = build(objectives=["mt", "mlm", "electra"])
    with torch.no_grad():
        old.encoder.embed_tokens.weight.add_(1)
    model.load_state_dict(old.state_dict())
    own = dict(model.named_parameters())
    for name, value in old.named_parameters():
        assert torch.equal(own[name], value), name
    assert model.heads["mlm"].weight is model.encoder.embed_tokens.weight


def test_a_new_head_begins_anew_in_memory_of_its_own() -> None:
    """What is loaded must not lie where weights in shards are gathered for a moment."""
    model, _ = build(objectives=["mlm"])
    old, _ = build(objectives=["electra"])
    state = dict(old.state_dict())
    fit_heads(state, model)
    own = model.state_dict()
    assert state.keys() == own.keys()
    for name in (name for name in own if name.startswith("heads.mlm.dense")):
        assert torch.equal(state[name], own[name])
        assert state[name].data_ptr() != own[name].data_ptr()
