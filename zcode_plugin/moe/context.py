"""What an MoE layer must know of the pass it runs in, beyond its input.

Stock encoder and decoder loops pass on hidden states alone. So the model opens a context around
its forward pass, and a hook at the outside of each MoE layer hands it in as a keyword argument.
Activation checkpointing keeps a layer's arguments: the recomputation gets the same context as the
first computation, whatever passes ran in between.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class CallContext:
    """One call of one layer.

    Attributes:
        layer: name of the layer in the model.
        key: (seed, update, pass within the update): the same numbers on all ranks, other numbers
            in every training pass.
        token_ids: int64 [S, B], ids of the tokens of the layer's input; None when unknown.
    """

    layer: str = ""
    key: tuple[int, ...] = ()
    token_ids: Tensor | None = None

    def coin(self, probability: float) -> bool:
        """True with this probability; all ranks, and a recomputation, see the same side.

        The default generators of ranks drift apart, since they draw for batches of different
        shapes; this coin comes from the numbers that ranks share.
        """
        return random.Random(f"{self.key} {self.layer}").random() < probability


def ids_of_tokens(context: CallContext | None, num_tokens: int) -> Tensor:
    """int64 [T], for a gate that chooses by them.

    Raises:
        ValueError: the context has none, or not as many.
    """
    if context is None or context.token_ids is None:
        raise ValueError("this gate needs a context with the ids of the layer's tokens")
    id_T = context.token_ids.reshape(-1)
    if id_T.numel() != num_tokens:
        raise ValueError(f"{id_T.numel()} token ids do not fit {num_tokens} tokens")
    return id_T


_current: ContextVar[CallContext | None] = ContextVar("call_context", default=None)


@contextmanager
def calling(**changes: Any) -> Iterator[None]:
    """Set attributes of the context that layers get, for the duration of the block."""
    token = _current.set(replace(_current.get() or CallContext(), **changes))
    try:
        yield
    finally:
        _current.reset(token)


def hand_in_context(layer: nn.Module, name: str) -> None:
    """Whenever `layer` is called, give it the open context as `context`, its name filled in."""

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        context = replace(_current.get() or CallContext(), layer=name)
        return args, {**kwargs, "context": context}

    layer.register_forward_pre_hook(hook, with_kwargs=True)
