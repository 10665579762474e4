"""Classes that fairseq's own checkpoints hold, made known to torch's safe loader."""

from __future__ import annotations

import argparse
import collections
import typing
from types import ModuleType
from typing import Any

from zcode_mends.mend import Mend, always


def allow(*classes: Any) -> None:
    """Add to the allow-list: classes, or pairs of a class and the name that files know it by."""
    import torch

    torch.serialization.add_safe_globals(list(classes))


def _allow_namespace(_: ModuleType) -> None:
    allow(argparse.Namespace)


def _allow_numpy(_: ModuleType) -> None:
    import numpy

    dtypes = {type(numpy.dtype(code)) for code in "?bhilqBHILQefdg"}
    allow(numpy.ndarray, numpy.dtype, *dtypes)
    for value in (numpy.zeros(0), numpy.float64(0)):
        rebuild: Any = value.__reduce__()[0]
        for package in ("numpy.core", "numpy._core"):  # numpy 1 and 2
            allow((rebuild, f"{package}.multiarray.{rebuild.__name__}"))


def _allow_broadcast_state(module: ModuleType) -> None:
    from omegaconf import base, dictconfig, listconfig, nodes

    allow(
        dictconfig.DictConfig,
        listconfig.ListConfig,
        base.ContainerMetadata,
        base.Metadata,
        nodes.AnyNode,
        typing.Any,
        dict,
        list,
        int,
        collections.defaultdict,
        module._TensorPlaceholder,
    )


CHECKPOINT_NAMESPACE = Mend(
    name="checkpoint-namespace",
    reason=(
        "torch 2.6 loads only classes it knows, and the config in nearly every fairseq checkpoint "
        "holds an argparse.Namespace"
    ),
    is_needed=always,
    apply=_allow_namespace,
    after=("fairseq.checkpoint_utils",),
)
CHECKPOINT_NUMPY = Mend(
    name="checkpoint-numpy",
    reason=(
        "torch 2.6 loads only classes it knows, and meters such as those of --eval-bleu are saved "
        "as numpy arrays and numbers (under numpy 1's module names or numpy 2's)"
    ),
    is_needed=always,
    apply=_allow_numpy,
    after=("fairseq.checkpoint_utils",),
)
CHECKPOINT_BROADCAST = Mend(
    name="checkpoint-broadcast",
    reason=(
        "torch 2.6 loads only classes it knows, and the state that rank 0 sends the other ranks "
        "on a resume holds the config as omegaconf objects and placeholders for tensors"
    ),
    is_needed=always,
    apply=_allow_broadcast_state,
    after=("fairseq.distributed.utils",),
)
