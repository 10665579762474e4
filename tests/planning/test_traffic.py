"""Bytes that collectives get in a training pass are those that `zcode plan` computes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed import run_ranks
from planning.test_forms import FP32, options

from zcode_plugin.planning.forms import Form, traffic
from zcode_plugin.planning.shapes import build, measure_shape

SYMBOLS, SENTENCES, LENGTH = 501, 16, 32
TOKENS = SENTENCES * LENGTH  # on each side, of a rank


def sizes(tensor: torch.Tensor, group: Any) -> tuple[int, int]:
    """Bytes of a tensor, and ranks that share it."""
    return tensor.nbytes, dist.get_world_size(group)


def summed(tensor: torch.Tensor, op: Any = None, group: Any = None, **_: Any) -> float:
    """What a ring sends: all but a rank's own share, twice."""
    size, ranks = sizes(tensor, group)
    return 2 * size * (ranks - 1) / ranks


def gathered(parts: Any, tensor: torch.Tensor, group: Any = None, **_: Any) -> float:
    size, ranks = sizes(tensor, group)
    return size * (ranks - 1)


def exchanged(
    output: torch.Tensor,
    rows: torch.Tensor,
    receive: list[int] | None = None,
    send: list[int] | None = None,
    group: Any = None,
    **_: Any,
) -> float:
    size, ranks = sizes(rows, group)
    if send is None:
        return size * (ranks - 1) / ranks
    own = send[dist.get_rank(group)]
    return size * (len(rows) - own) / max(1, len(rows))


SENT: dict[str, Callable[..., float]] = {
    "all_reduce": summed, "all_gather": gathered, "all_to_all_single": exchanged,
}  # fmt: skip


def count() -> dict[str, float]:
    """From now on, the bytes that this rank sends through each of torch's collectives."""
    found = dict.fromkeys(SENT, 0.0)

    def counting(name: str) -> Callable[..., Any]:
        stock = getattr(dist, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            found[name] += SENT[name](*args, **kwargs)
            return stock(*args, **kwargs)

        return counted

    for name in SENT:
        setattr(dist, name, counting(name))
    return found


def measure(rank: int, args: Namespace) -> dict[str, float]:
    """One forward and one backward pass of a model on this rank."""
    from fairseq.model_parallel.megatron import mpu

    tensor = args.model_parallel_size
    mpu.initialize_model_parallel(tensor)
    torch.manual_seed(1)
    model = build(args, SYMBOLS).train()
    torch.manual_seed(rank // tensor)
    tokens = torch.randint(4, SYMBOLS, (SENTENCES, LENGTH))
    lengths = torch.full((SENTENCES,), LENGTH)
    found = count()
    if tensor == 1:
        scores, _ = model(tokens, lengths, tokens)
        loss = torch.nn.functional.cross_entropy(scores.view(-1, SYMBOLS), tokens.view(-1))
    else:
        projection = model.decoder.output_projection
        with projection.keeping():
            scores, _ = model(tokens, lengths, tokens)
        loss, _ = projection.loss(scores, tokens, 0.1, 1)
    loss.backward()
    return found


@pytest.mark.parametrize(
    ("world", "expert_parallel", "tensor_parallel", "top_k"),
    [(2, 2, 1, 1), (2, 2, 1, 2), (2, 1, 2, 1), (4, 2, 2, 1), (4, 2, 2, 2), (4, 4, 1, 1)],
)
def test_what_is_sent_is_what_is_planned(
    world: int, expert_parallel: int, tensor_parallel: int, top_k: int
) -> None:
    """Within 5 %: counts of rows, and three numbers a target for the loss, are not planned."""
    args = options(
        "moe_transformer_tiny", moe_top_k=top_k, moe_capacity_factor=0.0, moe_expert_count="4",
        encoder_layers=4, decoder_layers=2,
    )  # fmt: skip
    shape = measure_shape(args, SYMBOLS)
    args.expert_parallel_size, args.model_parallel_size = expert_parallel, tensor_parallel
    ranks = run_ranks(measure, world, args)
    planned = traffic(shape, Form(world, expert_parallel, tensor_parallel), FP32)
    layers = shape.encoder_layers + shape.decoder_layers
    exchange, slicing = (
        sum(found[name] for found in ranks for name in names)
        for names in (["all_to_all_single"], ["all_reduce", "all_gather"])
    )
    expected = world * TOKENS * planned.exchange * len(shape.expert_layers)
    assert (expected > 0) == (expert_parallel > 1)
    assert exchange == pytest.approx(expected, rel=0.05)
    expected = world * TOKENS * planned.slicing * layers
    assert (expected > 0) == (tensor_parallel > 1)
    assert slicing == pytest.approx(expected, rel=0.05)
