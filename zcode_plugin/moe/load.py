"""Load statistics: who was sent where, for each layer, objective and language pair.

    with load_statistics() as statistics:
        with labelled(objective="mt", pairs="de-en"):
            model(**batch)
    for row in statistics.rows(): ...

Outside of `load_statistics` nothing is measured. Passes in which gating dropout ignored the gate
are not counted, nor are recomputations under activation checkpointing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor

from zcode_plugin.moe.context import CallContext
from zcode_plugin.moe.gate_output import GateOutput

# First positions of the buckets of positions in the sentence; the last bucket has no end.
POSITION_STARTS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)


class Key(NamedTuple):
    """What is counted apart."""

    layer: str
    objective: str
    pair: str


@dataclass
class Load:
    """Sums over all calls of one key.

    Attributes:
        asked_E: int64 [E], assignments that asked for each expert.
        kept_E: int64 [E], those that found a place.
        weight_E: float64 [E], sum of their combine weights.
        norm_E: float64 [E], sum of their combine weight x the L2 norm of the expert's output.
        asked_Q, dropped_Q: int64 [Q], assignments asked for and dropped, by the place of the token
            in its batch: bucket q holds the q-th of Q equal parts.
        asked_N, dropped_N: int64 [N], the same by the token's position in its sentence, padding
            not counted: bucket n begins at `POSITION_STARTS[n]`. Zeros where a batch's sentences
            are not known.
        tokens: tokens routed.
        entropy: sum over tokens of the entropy of the gate's distribution, in nats.
    """

    asked_E: Tensor
    kept_E: Tensor
    asked_Q: Tensor
    dropped_Q: Tensor
    asked_N: Tensor
    dropped_N: Tensor
    weight_E: Tensor
    norm_E: Tensor
    tokens: int = 0
    entropy: float = 0.0

    def add(self, other: Load) -> None:
        """Add the counts of another one with as many experts and buckets."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    def row(self, key: Key) -> dict[str, Any]:
        """Plain numbers, ready for a table or JSON.

        `dropped_by_position` are shares, between 0 and 1, of the assignments of each part of the
        batch; `asked_by_sentence_position` and `dropped_by_sentence_position` are counts.
        """
        asked = int(self.asked_E.sum())
        return {
            **key._asdict(),
            "tokens": self.tokens,
            "assignments": asked,
            "dropped": asked - int(self.kept_E.sum()),
            "dropped_by_position": (self.dropped_Q / self.asked_Q.clamp(min=1)).tolist(),
            "asked_by_sentence_position": self.asked_N.tolist(),
            "dropped_by_sentence_position": self.dropped_N.tolist(),
            "load": self.asked_E.tolist(),
            "kept": self.kept_E.tolist(),
            "weight": self.weight_E.tolist(),
            "norm": self.norm_E.tolist(),
            "max_over_mean": float(self.asked_E.max() * self.asked_E.numel()) / max(asked, 1),
            "dead_experts": int((self.asked_E == 0).sum()),
            "entropy": self.entropy / max(self.tokens, 1),
        }


@dataclass
class LoadStatistics:
    """Counts of all calls since `load_statistics` opened.

    Attributes:
        buckets: Q, parts of a batch whose drops are counted apart.
        loads: sums by key.
    """

    buckets: int = 16
    loads: dict[Key, Load] = field(default_factory=dict)
    _seen: WeakSet[CallContext] = field(default_factory=WeakSet, repr=False)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each layer, objective and pair, in the order in which they first came."""
        return [load.row(key) for key, load in self.loads.items()]

    def add(self, key: Key, load: Load) -> None:
        """Add counts to those of a key."""
        if key in self.loads:
            self.loads[key].add(load)
        else:
            self.loads[key] = load

    def gather(self) -> None:
        """Make every rank's counts those of all ranks; all must call it."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, {tuple(key): vars(load) for key, load in self.loads.items()})
        self.loads = {}
        for part in parts:
            for key, values in part.items():
                self.add(Key(*key), Load(**values))

    @torch.no_grad()
    def record(
        self,
        context: CallContext | None,
        gated: GateOutput,
        padding_T: Tensor | None,
        y_AM: Tensor,
    ) -> None:
        """Count one call of one layer, with the experts' outputs; called by the layer itself."""
        if context is not None:
            if context in self._seen:
                return
            self._seen.add(context)
        call = _Call(gated, padding_T, y_AM, self.buckets, _batch_size(context))
        layer = "" if context is None else context.layer
        objective, pairs = _label.get()
        if isinstance(pairs, str):
            self.add(Key(layer, objective, pairs), call.load())
            return
        sentence_T = _sentences(context, len(pairs), call.tokens)
        for pair in dict.fromkeys(pairs):
            mine_T = torch.tensor([name == pair for name in pairs])[sentence_T]
            self.add(Key(layer, objective, pair), call.load(mine_T))


class _Call:
    """The assignments of one call, on the CPU."""

    def __init__(
        self,
        gated: GateOutput,
        padding_T: Tensor | None,
        y_AM: Tensor,
        buckets: int,
        sentences: int | None,
    ):
        self.buckets = buckets
        self.num_experts = gated.routing.kept_E.numel()
        self.tokens = gated.expert_TK.size(0)
        self.expert_KT = gated.expert_TK.t().cpu()
        self.slot_A = gated.routing.slot_A.cpu()
        real_T = torch.ones(self.tokens, dtype=torch.bool)
        self.real_T = real_T if padding_T is None else ~padding_T.cpu()
        self.position_T = _position_bucket(self.real_T, sentences)
        self.entropy_T = gated.entropy_T.cpu()
        self.token_A = gated.routing.token_A.cpu()
        self.weight_A = gated.weight_A.cpu().double()
        self.norm_A = self.weight_A * y_AM.float().norm(dim=1).cpu()

    def load(self, mine_T: Tensor | None = None) -> Load:
        """Counts of the tokens in `mine_T`, bool [T]; of all without it."""
        mine_T = self.real_T if mine_T is None else self.real_T & mine_T
        k = self.expert_KT.size(0)
        mine_A = mine_T.repeat(k)
        kept_A = torch.zeros_like(mine_A)
        kept_A[self.slot_A] = True
        bucket_T = torch.arange(self.tokens) * self.buckets // max(self.tokens, 1)
        expert_A, bucket_A = self.expert_KT.flatten(), bucket_T.repeat(k)
        position_A = self.position_T.repeat(k)
        placed_A = mine_A & (position_A >= 0)

        def count(values_A: Tensor, where_A: Tensor, size: int) -> Tensor:
            return values_A[where_A].bincount(minlength=size)

        mine_rows_A = mine_T[self.token_A]
        expert_of_row_A = expert_A[self.slot_A]

        def total(values_A: Tensor) -> Tensor:
            zeros_E = torch.zeros(self.num_experts, dtype=torch.float64)
            return zeros_E.index_add(0, expert_of_row_A, values_A * mine_rows_A)

        return Load(
            asked_E=count(expert_A, mine_A, self.num_experts),
            kept_E=count(expert_A, mine_A & kept_A, self.num_experts),
            asked_Q=count(bucket_A, mine_A, self.buckets),
            dropped_Q=count(bucket_A, mine_A & ~kept_A, self.buckets),
            asked_N=count(position_A, placed_A, len(POSITION_STARTS)),
            dropped_N=count(position_A, placed_A & ~kept_A, len(POSITION_STARTS)),
            weight_E=total(self.weight_A),
            norm_E=total(self.norm_A),
            tokens=int(mine_T.sum()),
            entropy=float(self.entropy_T[mine_T].sum()),
        )


def _batch_size(context: CallContext | None) -> int | None:
    """Sentences of the batch, where they are known."""
    ids = None if context is None else context.token_ids
    return None if ids is None else ids.size(1)


def _position_bucket(real_T: Tensor, sentences: int | None) -> Tensor:
    """The bucket of each token's position in its sentence, int64 [T]; -1 where it is not known.

    Sources are padded on the left: positions count from a sentence's first real token.
    """
    if not sentences or real_T.numel() % sentences:
        return torch.full(real_T.shape, -1)
    position_SB = real_T.view(-1, sentences).cumsum(0) - 1
    return torch.bucketize(position_SB.flatten(), torch.tensor(POSITION_STARTS), right=True) - 1


def _sentences(context: CallContext | None, sentences: int, tokens: int) -> Tensor:
    """The sentence of each token; tokens lie by place in the sentence, then by sentence."""
    ids = None if context is None else context.token_ids
    if ids is None or ids.size(1) != sentences or ids.numel() != tokens:
        raise ValueError(
            f"{sentences} pairs, one for each sentence, do not fit a batch of token ids "
            f"{None if ids is None else tuple(ids.t().shape)}"
        )
    return torch.arange(tokens) % sentences


_open: ContextVar[LoadStatistics | None] = ContextVar("load_statistics", default=None)
_label: ContextVar[tuple[str, str | Sequence[str]]] = ContextVar("label", default=("", ""))


def current_statistics() -> LoadStatistics | None:
    """Where a layer must record its calls, or None."""
    return _open.get()


@contextmanager
def load_statistics(buckets: int = 16) -> Iterator[LoadStatistics]:
    """Count what all MoE layers do inside the block."""
    statistics = LoadStatistics(buckets)
    token = _open.set(statistics)
    try:
        yield statistics
    finally:
        _open.reset(token)


@contextmanager
def labelled(
    objective: str | None = None, pairs: str | Sequence[str] | None = None
) -> Iterator[None]:
    """Say what the passes inside the block belong to; None leaves what an outer block said.

    Args:
        objective: its name.
        pairs: language pair of the batch; or of each of its sentences, in order.
    """
    outer_objective, outer_pairs = _label.get()
    token = _label.set(
        (
            outer_objective if objective is None else objective,
            outer_pairs if pairs is None else pairs,
        )
    )
    try:
        yield
    finally:
        _label.reset(token)
