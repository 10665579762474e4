"""Optimizers as stock makes them."""

from __future__ import annotations

from collections.abc import Iterable

from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from torch import nn


def adam(parameters: Iterable[nn.Parameter]) -> FairseqAdam:
    config = FairseqAdamConfig(adam_betas="(0.9, 0.98)")
    config.lr = [0.1]
    return FairseqAdam(config, list(parameters))
