"""The vocabulary of a checkpoint: which symbol each row of its embeddings stands for."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zcode_plugin.checkpoint import config
from zcode_plugin.checkpoint.names import EMBEDDINGS
from zcode_plugin.errors import UserError
from zcode_plugin.flags import comma_list

# Entries with a row for each symbol.
_ROWS = (
    EMBEDDINGS,
    "decoder.embed_tokens.weight",
    "decoder.output_projection.weight",
    "heads.mlm.weight",
    "heads.mlm.bias",
    "heads.electra.generator.bias",
)


def symbols_of(state: Mapping[str, Any]) -> list[str] | None:
    """All symbols in the order of their rows; None where the checkpoint does not say."""
    text = (state.get("task_state") or {}).get("symbols")
    return None if text is None else text.split("\n")


def languages_of(state: Mapping[str, Any]) -> list[str]:
    """The languages that the model was trained with; none where the checkpoint does not say."""
    return comma_list(config.get(state.get("task_state"), "langs"))


def directions_of(state: Mapping[str, Any]) -> list[str]:
    """The directions that the model was trained in, as its task found or its options name them."""
    found = comma_list(config.get(state.get("task_state"), "lang_pairs"))
    return found or comma_list(config.get(config.section(state, "task"), "lang_pairs"))


def rows_for(state: Mapping[str, Any], symbols: Sequence[str], path: Path) -> Tensor | None:
    """Where the rows of another vocabulary lie in a checkpoint.

    Args:
        state: the checkpoint.
        symbols: the other vocabulary.
        path: of the checkpoint, for errors.

    Returns:
        int64 [len(symbols)], -1 for a symbol that the checkpoint has not; None when the two
        vocabularies are one.

    Raises:
        UserError: the sizes differ, and the checkpoint does not say what its rows stand for.
    """
    own = symbols_of(state)
    if own is None:
        embedding = state["model"].get(_ROWS[0])
        if embedding is None or len(embedding) == len(symbols):
            return None
        raise UserError(
            f"{path} has rows for {len(embedding):,} symbols and does not say which, this run has "
            f"{len(symbols):,}: use the dictionary and the languages that it was trained with"
        )
    if own == list(symbols):
        return None
    row_of = {symbol: row for row, symbol in enumerate(own)}
    return torch.tensor([row_of.get(symbol, -1) for symbol in symbols])


def move_rows(tensors: MutableMapping[str, Any], own: Mapping[str, Tensor], rows_V: Tensor) -> None:
    """Give a model's weights the rows of its vocabulary.

    Args:
        tensors: weights of a checkpoint, changed in place.
        own: those of the model, whose rows are kept for symbols that the checkpoint has not.
        rows_V: see `rows_for`.
    """
    known_V = rows_V >= 0
    for name in _ROWS:
        if name in tensors and name in own:
            moved = own[name].detach().clone()
            known = known_V.to(moved.device)
            moved[known] = tensors[name][rows_V[known_V]].to(moved)
            tensors[name] = moved


def check_same(state: Mapping[str, Any], symbols: Sequence[str], what: str, remedy: str) -> None:
    """Refuse a vocabulary that is not the checkpoint's.

    Args:
        state: the checkpoint; of one that does not name its symbols nothing is known.
        symbols: the vocabulary of this run.
        what: the subject of the error.
        remedy: the end of its line.

    Raises:
        UserError: naming the first symbol that differs.
    """
    own = symbols_of(state)
    if own is None or own == list(symbols):
        return
    pairs = zip_longest(own, symbols)
    row, (theirs, ours) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    raise UserError(
        f"{what} has another vocabulary ({len(own):,} symbols, this run {len(symbols):,}; number "
        f"{row} is {theirs}, here {ours}): {remedy}"
    )


def check_alike(
    first: Mapping[str, Any], other: Mapping[str, Any], first_path: Path, path: Path
) -> None:
    """Refuse checkpoints of different languages or vocabularies, whose weights do not add up.

    Raises:
        UserError: naming what differs; of checkpoints that do not name theirs nothing is known.
    """
    langs = [languages_of(state) for state in (first, other)]
    if all(langs) and langs[0] != langs[1]:
        raise UserError(
            f"{path} and {first_path} have different languages, or another order of them: "
            f"{','.join(langs[1])} and {','.join(langs[0])}"
        )
    symbols = symbols_of(first)
    if symbols is not None:
        remedy = f"give all models the dictionary of {first_path}"
        check_same(other, symbols, f"{path} (beside {first_path})", remedy)
