"""Losses of single passes."""

from __future__ import annotations

from typing import Any

import torch
from checkpoint.exported import build

from zcode_plugin.criterions.objective_pass import run_objective


def masked_batch() -> dict[str, Any]:
    tokens_BS = torch.arange(4, 28).reshape(4, 6)
    masked_BS = tokens_BS % 5 == 0
    return {
        "net_input": {
            "src_tokens": tokens_BS, "src_lengths": torch.full((4,), 6),
            "masked_tokens": masked_BS, "objective": "mlm",
        },
        "target": tokens_BS[masked_BS],
        "ntokens": int(masked_BS.sum()),
    }  # fmt: skip


def test_a_head_has_a_softmax_of_its_own() -> None:
    """Whatever the decoder has: here one that tells frequent words first."""
    adaptive = {"adaptive_softmax_cutoff": "10,20", "share_all_embeddings": False}
    model, _ = build(objectives=["mlm"], **adaptive)
    batch = masked_batch()
    found = run_objective(model, "mlm", batch, label_smoothing=0.1, padding=1)
    scores_NV = model(**batch["net_input"])[0]
    wanted = torch.nn.functional.cross_entropy(scores_NV, batch["target"], reduction="sum")
    torch.testing.assert_close(found.loss, wanted)
