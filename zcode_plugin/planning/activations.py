"""Bytes that a training pass keeps for the way back, measured on a small model of the same layers.

What autograd keeps depends on each operation of each layer; so it is asked: a model with two layers
on each side and a small vocabulary makes one pass, and the tensors that it keeps are counted, each
storage once, for each kind of layer. All of them grow with the number of tokens, and, within
attention, with the length of sentences.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from zcode_plugin.planning.shapes import build

_SENTENCES, _SYMBOLS = 2, 1000


@dataclass(frozen=True)
class Activations:
    """Float32 bytes per token.

    Attributes:
        layers: of a layer, by side and whether it has experts: ("encoder", True).
        outside: before and between the layers, both sides together.
        output: per symbol of the vocabulary, of the decoder's output.
    """

    layers: dict[tuple[str, bool], float]
    outside: float
    output: float


@dataclass
class _Kept:
    """Storages that are kept, by the place in the model where they were first kept."""

    ignored: set[int]
    place: Any = "outside"
    bytes: dict[Any, int] = field(default_factory=dict)
    _seen: dict[int, Tensor] = field(default_factory=dict)

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in self.ignored and address not in self._seen:
            self._seen[address] = tensor  # alive, or another might get its address
            self.bytes[self.place] = self.bytes.get(self.place, 0) + storage.nbytes()
        return tensor


@contextmanager
def kept_for_backward(model: nn.Module) -> Iterator[_Kept]:
    """Count what autograd keeps inside the block, parameters and buffers apart."""
    tensors = [*model.parameters(), *model.buffers()]
    kept = _Kept({tensor.untyped_storage().data_ptr() for tensor in tensors})
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        yield kept


def measure_activations(args: Namespace, length: int) -> Activations:
    """Of the layers that these options say.

    Args:
        args: options of the model; the numbers of layers, experts and symbols do not count.
        length: tokens of a sentence, on each side.
    """
    small = copy(args)
    small.encoder_layers = small.decoder_layers = 2
    small.moe_freq, small.encoder_moe_freq, small.decoder_moe_freq = 2, None, None
    small.encoder_moe_expert_count = small.decoder_moe_expert_count = None
    small.moe_expert_count = str(max(2, small.moe_top_k))
    small.expert_parallel_size = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # what is dropped is drawn
        return _measure(build(small, _SYMBOLS).train(), length)


def _measure(model: Any, length: int) -> Activations:
    tokens = torch.randint(4, _SYMBOLS, (_SENTENCES, length))
    lengths = torch.full((_SENTENCES,), length)
    with kept_for_backward(model) as kept:
        for side in ("encoder", "decoder"):
            for index, layer in enumerate(getattr(model, side).layers):
                _tell_place(layer, kept, (side, index == 1))
        output = model(tokens, lengths, tokens)
        kept.place = "output"
        lprobs = model.get_normalized_probs(output, log_probs=True)
        nll_loss(lprobs.view(-1, _SYMBOLS), tokens.view(-1), reduction="sum")
    number = tokens.numel()
    return Activations(
        {kind: kept.bytes.get(kind, 0) / number for kind in _kinds()},
        kept.bytes.get("outside", 0) / number,
        kept.bytes.get("output", 0) / number / _SYMBOLS,
    )


def _kinds() -> list[tuple[str, bool]]:
    return [(side, moe) for side in ("encoder", "decoder") for moe in (False, True)]


def _tell_place(layer: nn.Module, kept: _Kept, place: Any) -> None:
    def enter(module: nn.Module, inputs: Any) -> None:
        kept.place = place

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        kept.place = "outside"

    layer.register_forward_pre_hook(enter)
    layer.register_forward_hook(leave)
