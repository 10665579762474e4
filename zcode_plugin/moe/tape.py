"""Gathers the statistics of all MoE layers of one forward pass.

Stock encoder and decoder loops pass on hidden states alone, so layers hand their packed
`LayerStats` to the tape that is open; without one nobody needs them. A forward hook at the outside
of a layer does that, where activation checkpointing has already turned the layer's outputs into
outputs of the checkpoint, gradients included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn

Tape = dict[str, Tensor]
_open_tape: ContextVar[Tape | None] = ContextVar("open_tape", default=None)


@contextmanager
def recording() -> Iterator[Tape]:
    """Open a tape: it maps the name of each MoE layer to its statistics, in forward order."""
    tape: Tape = {}
    token = _open_tape.set(tape)
    try:
        yield tape
    finally:
        _open_tape.reset(token)


def is_recording() -> bool:
    """Whether a tape is open."""
    return _open_tape.get() is not None


def record_last_output(layer: nn.Module, name: str) -> None:
    """Whenever `layer` runs, put the last element of its output tuple on the open tape."""

    def hook(module: nn.Module, inputs: object, output: tuple[Tensor, ...]) -> None:
        tape = _open_tape.get()
        if tape is not None:
            tape[name] = output[-1]

    layer.register_forward_hook(hook)
