"""Rows of embeddings follow their symbols from one vocabulary to another."""

from pathlib import Path

import pytest
import torch

from zcode_plugin.checkpoint.vocabulary import check_same, move_rows, rows_for
from zcode_plugin.errors import UserError

OLD, NEW = ["<s>", "a", "b", "__aa__"], ["<s>", "b", "c", "a", "__bb__", "__aa__"]
PATH = Path("old.pt")


def state(symbols: list[str] | None, rows: int = 4) -> dict:
    return {
        "model": {"encoder.embed_tokens.weight": torch.arange(float(2 * rows)).reshape(rows, 2)},
        "task_state": None if symbols is None else {"symbols": "\n".join(symbols)},
    }


def test_rows_move_with_their_symbols_and_new_ones_stay_as_they_are() -> None:
    rows = rows_for(state(OLD), NEW, PATH)
    assert rows.tolist() == [0, 2, -1, 1, -1, 3]
    tensors = {
        "decoder.output_projection.weight": torch.tensor([[0.0], [1], [2], [3]]),
        "heads.mlm.bias": torch.tensor([0.0, 1, 2, 3]),
        "encoder.layers.0.fc1.bias": torch.ones(4),
    }
    own = {
        "decoder.output_projection.weight": torch.full((6, 1), 9.0),
        "heads.mlm.bias": torch.full((6,), 8.0, dtype=torch.float16),
        "encoder.layers.0.fc1.bias": torch.zeros(4),
    }
    move_rows(tensors, own, rows)
    assert tensors["decoder.output_projection.weight"].tolist() == [[0], [2], [9], [1], [9], [3]]
    assert tensors["heads.mlm.bias"].tolist() == [0, 2, 8, 1, 8, 3]
    assert tensors["heads.mlm.bias"].dtype == torch.float16
    assert tensors["encoder.layers.0.fc1.bias"].tolist() == [1] * 4
    assert own["heads.mlm.bias"].tolist() == [8] * 6


def test_one_vocabulary_needs_no_moving() -> None:
    assert rows_for(state(OLD), OLD, PATH) is None
    assert rows_for(state(None), OLD, PATH) is None


def test_unnamed_rows_cannot_be_moved() -> None:
    with pytest.raises(UserError, match=r"old.pt has rows for 4 symbols and does not say which"):
        rows_for(state(None), NEW, PATH)


def test_the_first_difference_is_named() -> None:
    check_same(state(OLD), OLD, "it", "mend it")
    check_same(state(None), NEW, "it", "mend it")
    with pytest.raises(UserError, match=r"number 1 is a, here b.*: mend it"):
        check_same(state(OLD), NEW, "it", "mend it")
    with pytest.raises(UserError, match="4 symbols, this run 3; number 3 is __aa__, here None"):
        check_same(state(OLD), OLD[:3], "it", "mend it")
