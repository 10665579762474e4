"""Loss-free load balancing (arXiv 2408.15664): the selection bias of each gate follows the load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from zcode_plugin.moe.gate import TopKGate
from zcode_plugin.moe.stats import LayerStats
from zcode_plugin.parallel.topology import world_size


class LoadBalancer:
    """Adds up the loads of an update, then moves the biases by rate * sign(mean load - load).

    Loads are those of all ranks and micro-batches, before dropping. They come from what the layers
    return, so a recomputation under activation checkpointing does not count again.

    Args:
        gates: gate of each MoE layer by the layer's name; all have a selection bias.
        rate: step of the bias per update.

    Attributes:
        counting: False while a batch runs that must not count.
    """

    def __init__(self, gates: Mapping[str, TopKGate], rate: float):
        self.gates = dict(gates)
        self.rate = rate
        self.counting = True
        self._loads: dict[str, Tensor] = {}

    def discard(self) -> None:
        """Forget the loads since the last update."""
        self._loads.clear()

    def observe(self, tape: Mapping[str, Tensor]) -> None:
        """Add the loads of one pass; `tape` has the packed `LayerStats` of layers by name."""
        if not self.counting:
            return
        for name, vector in tape.items():
            load_E = LayerStats.unpack(vector.detach()).load_E.double()
            self._loads[name] = self._loads[name] + load_E if name in self._loads else load_E

    @torch.no_grad()
    def update(self) -> None:
        """Move the biases, the same way on every rank; one all-reduce for all layers."""
        biases = {name: _bias(gate) for name, gate in self.gates.items()}
        loads = torch.cat(
            [
                self._loads.get(name, torch.zeros_like(bias, dtype=torch.float64))
                for name, bias in biases.items()
            ]
        )
        if world_size() > 1:
            dist.all_reduce(loads)
        sizes = [bias.numel() for bias in biases.values()]
        for bias, load_E in zip(biases.values(), loads.split(sizes), strict=True):
            bias += self.rate * torch.sign(load_E.mean() - load_E).to(bias.dtype)
        self.discard()


def gates_of(model: Any) -> dict[str, TopKGate]:
    """The gates of an encoder-decoder model, by the names under which statistics are recorded."""
    return {
        f"{side}.layers.{index}": gate
        for side in ("encoder", "decoder")
        # By number: a list with LayerDrop leaves some out when it is gone through.
        for index in range(len(getattr(model, side).layers))
        for gate in getattr(model, side).layers[index].modules()
        if isinstance(gate, TopKGate)
    }


def _bias(gate: TopKGate) -> Tensor:
    assert gate.selection_bias is not None
    return gate.selection_bias


def follow_optimizer(balancer: LoadBalancer, optimizer: Any) -> None:
    """Let the balancer live by the rhythm of a fairseq optimizer; for one instance, only once.

    Loads live as long as the gradients of the same batches: `zero_grad` forgets both, at the start
    of an update and after an overflow, and a step that is really taken applies both. A step that a
    loss scaler skips never reaches torch's optimizer, whose hook this is.
    """
    if getattr(optimizer, "load_balancer", None) is balancer:
        return
    stock_zero_grad = optimizer.zero_grad

    def zero_grad(*args: Any, **kwargs: Any) -> None:
        stock_zero_grad(*args, **kwargs)
        balancer.discard()

    optimizer.zero_grad = zero_grad
    optimizer.optimizer.register_step_post_hook(lambda *_: balancer.update())
    optimizer.load_balancer = balancer
