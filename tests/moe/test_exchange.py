"""The plan of an exchange; what it does on several ranks is in test_layer and test_fairscale."""

from __future__ import annotations

import torch

from zcode_plugin.moe.exchange import _by_expert


def test_received_rows_are_grouped_by_expert() -> None:
    # From rank 0: row 0 for expert 0, rows 1 and 2 for expert 1, none for expert 2;
    # from rank 1: rows 3 and 4 for expert 0, row 5 for expert 1, row 6 for expert 2.
    received_PL = torch.tensor([[1, 2, 0], [2, 1, 1]])
    assert _by_expert(received_PL, 7).tolist() == [0, 3, 4, 1, 2, 5, 6]
    assert _by_expert(torch.zeros(2, 3, dtype=torch.int64), 0).tolist() == []
