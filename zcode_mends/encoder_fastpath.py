"""The encoder layer's own call of torch's fused inference kernel."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from zcode_mends.mend import Mend, version


def _is_needed(module: ModuleType) -> bool:
    import torch

    return version(torch.__version__) >= (1, 13)


def _never_take_it(module: ModuleType) -> None:
    layer = module.TransformerEncoderLayerBase
    stock = layer.__init__

    @functools.wraps(stock)
    def init(self: Any, *args: Any, **options: Any) -> None:
        stock(self, *args, **options)
        self.can_use_fastpath = False

    layer.__init__ = init


ENCODER_FASTPATH = Mend(
    name="encoder-fastpath",
    reason=(
        "since torch 1.13 the fused kernel wants to be told the kind of its mask, which fairseq's "
        "post-norm encoder layers do not: with padding they raise 'Mask Type should be defined'"
    ),
    is_needed=_is_needed,
    apply=_never_take_it,
    after=("fairseq.modules.transformer_layer",),
)
