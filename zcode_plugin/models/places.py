"""Where a rank stands among those that hold parts of one model."""

from __future__ import annotations

from argparse import Namespace

from zcode_plugin.models.fully_sharded_checks import check_fully_sharded
from zcode_plugin.models.layer_experts import LayerExperts
from zcode_plugin.models.moe_checks import check_parallel
from zcode_plugin.models.moe_config import MoEConfig
from zcode_plugin.models.sliced_checks import check_sliced
from zcode_plugin.parallel import fully_sharded
from zcode_plugin.parallel.tensor import TensorSlicing, tensor_slicing
from zcode_plugin.parallel.topology import ExpertTopology, expert_topology


def find_places(
    args: Namespace, moe: MoEConfig, layout: LayerExperts
) -> tuple[TensorSlicing, ExpertTopology]:
    """The place of this rank in tensor slicing and in expert parallelism.

    Args:
        args: all options of the run.
        moe: those of the experts.
        layout: numbers of experts of the MoE layers of each side.

    Raises:
        UserError: options that do not go with it, or sizes that do not fit the world.
    """
    slicing = tensor_slicing(getattr(args, "model_parallel_size", 1))
    # Before groups are made: a rank that ends would leave others waiting there.
    if moe.expert_parallel_size > 1:
        check_parallel(args)
    if fully_sharded.is_wanted():
        check_fully_sharded(args, moe)
    if slicing.size > 1:
        check_sliced(args)
    counts = [count for side in layout.values() for count in side.values()]
    return slicing, expert_topology(moe.expert_parallel_size, counts, slicing.size)
