"""What stock imports as `fairseq.model_parallel.megatron`, a git submodule that no wheel holds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from zcode_mends.mend import Mend, refuse

_PACKAGE = "fairseq.model_parallel.megatron"


class RandomStates:
    """Random draws for slices, other ones on each tensor rank; the interface is Megatron's tracker.

    Megatron keeps a second generator for them. Here the generator comes, each time, from one draw
    of the default one, which all tensor ranks move alike, and the rank. So there is no state of its
    own: it works on a CPU, and a resumed run and a recomputation under activation checkpointing
    draw what they drew before.
    """

    def reset(self) -> None:
        """Nothing to forget."""

    def get_states(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}

    def set_states(self, states: dict[str, Any]) -> None:
        """Nothing to restore."""

    def add(self, name: str, seed: int) -> None:
        """Nothing to add: see the class."""

    @contextmanager
    def fork(self, name: str = "") -> Iterator[None]:
        """Within the block the default generators are this tensor rank's own."""
        import torch
        from fairscale.nn.model_parallel import get_model_parallel_rank

        seed = int(torch.randint(2**31, (1,))) + get_model_parallel_rank()
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        state, gpu_state = torch.get_rng_state(), torch.cuda.get_rng_state() if on_gpu else None
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_rng_state(state)
            if gpu_state is not None:
                torch.cuda.set_rng_state(gpu_state)


_STATES = RandomStates()


def _seed(seed: int) -> None:
    import torch

    torch.manual_seed(seed)


def _initialize(model_parallel_size: int, **options: Any) -> None:
    from fairscale.nn import model_parallel
    from torch import distributed

    world = distributed.get_world_size()
    if world % model_parallel_size:  # fairscale asserts, or quietly takes the world for the size
        distributed.barrier()  # a rank that ends while another still connects to it breaks that one
        refuse(
            f"--model-parallel-size {model_parallel_size} must divide the world size {world}: "
            "choose a divisor, or another number of ranks"
        )
    model_parallel.initialize_model_parallel(model_parallel_size, **options)


def _is_needed(package: ModuleType) -> bool:
    import importlib.machinery
    import importlib.util

    found = importlib.machinery.PathFinder.find_spec(_PACKAGE, package.__path__)
    # The submodule that is not checked out is an empty folder, which Python takes for a package.
    return (found is None or found.origin is None) and importlib.util.find_spec(
        "fairscale"
    ) is not None


def _stand_in(_: ModuleType) -> None:
    from fairscale.nn import model_parallel
    from fairscale.nn.model_parallel import cross_entropy

    megatron, mpu = ModuleType(_PACKAGE), ModuleType(f"{_PACKAGE}.mpu")
    vars(mpu).update(
        {name: value for name, value in vars(model_parallel).items() if name[0] != "_"}
    )
    vars(mpu).update(
        __path__=[],
        cross_entropy=cross_entropy,
        get_cuda_rng_tracker=lambda: _STATES,
        initialize_model_parallel=_initialize,
        model_parallel_cuda_manual_seed=_seed,
    )
    vars(megatron).update(__path__=[], mpu=mpu)
    sys.modules.update(
        {
            megatron.__name__: megatron,
            mpu.__name__: mpu,
            f"{mpu.__name__}.cross_entropy": cross_entropy,
        }
    )


def _knows_no_heads(module: ModuleType) -> bool:
    return not hasattr(module.ModelParallelMultiheadAttention, "num_heads")


def _count_heads(module: ModuleType) -> None:
    attention = module.ModelParallelMultiheadAttention
    attention.num_heads = property(lambda self: self.num_heads_partition * self.model_parallel_size)


MEGATRON = Mend(
    name="megatron",
    reason=(
        "--model-parallel-size and the layers behind it need Megatron's mpu, a git submodule that "
        "fairseq's wheel lacks: fairscale's nn.model_parallel, a copy of it, stands in, with a "
        "tracker of random states that works on a CPU, too"
    ),
    is_needed=_is_needed,
    apply=_stand_in,
    before=("fairseq.model_parallel",),
)
MEGATRON_HEADS = Mend(
    name="megatron-heads",
    reason=(
        "stock's decoder layers ask their attention for the number of its heads, which the "
        "attention of its tensor-parallel layers does not know"
    ),
    is_needed=_knows_no_heads,
    apply=_count_heads,
    after=("fairseq.model_parallel.modules.multihead_attention",),
)
