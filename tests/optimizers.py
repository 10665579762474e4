"""Optimizers as stock makes them."""

from __future__ import annotations

from collections.abc import Iterable

from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from fairseq.optim.fp16_optimizer import FP16Optimizer
from fairseq.optim.sgd import SGD
from omegaconf import OmegaConf
from torch import nn

_SGD = {"lr": [0.1], "momentum": 0.0, "weight_decay": 0.0}


def adam(parameters: Iterable[nn.Parameter]) -> FairseqAdam:
    config = FairseqAdamConfig(adam_betas="(0.9, 0.98)")
    config.lr = [0.1]
    return FairseqAdam(config, list(parameters))


def sgd(parameters: Iterable[nn.Parameter]) -> SGD:
    return SGD(OmegaConf.create(_SGD), list(parameters))


def half_sgd(parameters: Iterable[nn.Parameter], min_loss_scale: float = 1e-4) -> FP16Optimizer:
    """That of `--fp16 --fp16-no-flatten-grads`, with a loss scale of 4."""
    common = {"fp16_init_scale": 4, "fp16_scale_window": 100, "fp16_scale_tolerance": 0.0}
    common |= {"threshold_loss_scale": None, "min_loss_scale": min_loss_scale, "bf16": False}
    common |= {"fp16_no_flatten_grads": True, "on_cpu_convert_precision": False}
    config = OmegaConf.create(
        {
            "common": common,
            "optimizer": {"_name": "sgd", **_SGD},
            "optimization": {"update_freq": [1]},
            "distributed_training": {"distributed_world_size": 1},
        }
    )
    return FP16Optimizer.build_optimizer(config, list(parameters))
