"""Flags of fairseq-train that stock fairseq knows on one kind of device only, on the others."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from zcode_mends.mend import Mend, StandIn, always


def _spare_the_tpu(options: ModuleType) -> None:
    stock = options.parse_args_and_arch

    @functools.wraps(stock)
    def parse_args_and_arch(
        parser: Any, input_args: Sequence[str] | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        parsed = stock(parser, input_args, *args, **kwargs)
        chosen = parsed[0] if isinstance(parsed, tuple) else parsed
        given = sys.argv[1:] if input_args is None else input_args
        elsewhere = getattr(chosen, "cpu", False) or not importlib.util.find_spec("torch_xla")
        if getattr(chosen, "bf16", False) and elsewhere and "--tpu" not in given:
            chosen.tpu = False
        return parsed

    options.parse_args_and_arch = parse_args_and_arch  # type: ignore[attr-defined]


def _keep_fp32_copies_apart(module: ModuleType) -> None:
    optimizer = module.FP16Optimizer
    stock = optimizer.build_optimizer

    def build_optimizer(cls: Any, cfg: Any, params: Any, /, **options: Any) -> Any:
        params = list(params)
        if any(parameter.device.type == "cpu" for parameter in params):
            cfg.common.fp16_no_flatten_grads = True
        return stock.__func__(cls, cfg, params, **options)

    optimizer.build_optimizer = classmethod(build_optimizer)


def _keep_zero_norm_on_cpu(trainer: ModuleType) -> None:
    import torch

    def tensor(*args: Any, **options: Any) -> torch.Tensor:
        made = torch.tensor(*args, **options)
        if not torch.cuda.is_available():
            vars(made)["cuda"] = lambda: made
        return made

    # The one tensor that the trainer makes is the gradient norm to report after an overflow.
    trainer.torch = StandIn(torch, tensor=tensor)  # type: ignore[attr-defined]


def _mend_fp16(module: ModuleType) -> None:
    if module.__name__ == "fairseq.trainer":
        _keep_zero_norm_on_cpu(module)
    else:
        _keep_fp32_copies_apart(module)


# One of the copies of its weights that stock's encoder layer keeps, and never uses in training.
_COPY = ".in_proj_weight"


def _name_no_device(module: ModuleType) -> None:
    stock = module.DistributedDataParallel

    @functools.wraps(stock, updated=())
    def distributed_data_parallel(module: Any, **options: Any) -> Any:
        if next(module.parameters()).device.type == "cpu":
            options.update(device_ids=None, output_device=None)
            if any(name.endswith(_COPY) for name, _ in module.named_parameters()):
                options.update(find_unused_parameters=True)
        return stock(module, **options)

    module.DistributedDataParallel = distributed_data_parallel  # type: ignore[attr-defined]


BF16_WITHOUT_TPU = Mend(
    name="bf16-without-tpu",
    reason=(
        "stock takes --bf16 to mean --tpu, with --cpu and on machines without torch_xla too, and "
        "then fails for want of a TPU"
    ),
    is_needed=always,
    apply=_spare_the_tpu,
    after=("fairseq.options",),
)
FP16_ON_CPU = Mend(
    name="fp16-on-cpu",
    reason=(
        "stock keeps the fp32 copy of --fp16 in one flat tensor per CUDA device, and moves the "
        "gradient norm of an overflow to CUDA: with --cpu the copy is kept per parameter (as "
        "--fp16-no-flatten-grads does) and the norm stays"
    ),
    is_needed=always,
    apply=_mend_fp16,
    after=("fairseq.optim.fp16_optimizer", "fairseq.trainer"),
)
DDP_ON_CPU = Mend(
    name="ddp-on-cpu",
    reason=(
        "stock names a CUDA device to torch's DistributedDataParallel (--ddp-backend pytorch_ddp, "
        "the default), which takes none on a CPU, and leaves the unused weight copies of its "
        "encoder layers to --find-unused-parameters"
    ),
    is_needed=always,
    apply=_name_no_device,
    after=("fairseq.models.distributed_fairseq_model",),
)
