"""Makes the means of several objectives means over all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from zcode_plugin.moe.grouped import counts_on
from zcode_plugin.parallel.topology import collective_device, world_size


def normalizers(
    sample: dict[str, Any], *, ignore: bool = False, by_tokens: bool = False
) -> dict[str, float | Tensor]:
    """For each name of `target_counts`: targets of the first objective per target of this one.

    fairseq's trainer divides the summed loss by the summed sample size, which is the number of the
    first objective's targets. A loss that is first multiplied by these factors is, after that, a
    mean over its own targets. All counts are those of all ranks together; where there are several,
    factors are scalars on the device of their collectives, and the host does not wait for them.

    Args:
        sample: maps each objective's name to its batch, the same names in the same order on all
            ranks.
        ignore: True for a batch that stands in for a missing one and must not count.
        by_tokens: every mean weighs, besides, as the objective's share of all targets.
    """
    targets = target_counts(sample)
    if len(targets) < 2:
        return dict.fromkeys(targets, 1.0)
    counts = [0 if ignore else int(count) for count in targets.values()]
    names = list(targets)
    if world_size() == 1:
        counts_N = torch.tensor(counts).double()
        return dict(zip(names, _factors(counts_N, names, by_tokens).tolist(), strict=True))
    counts_N = counts_on(collective_device(), counts).double()
    dist.all_reduce(counts_N)
    return dict(zip(names, _factors(counts_N, names, by_tokens).float().unbind(), strict=True))


def _factors(counts_N: Tensor, names: list[str], by_tokens: bool) -> Tensor:
    """See `normalizers`; 0 where there are no targets."""
    share_N = torch.ones_like(counts_N)
    if by_tokens:
        # What stands behind a dot is a part of its objective, not one more.
        counts = dict(zip(names, counts_N.unbind(), strict=True))
        everything = torch.stack([counts[name] for name in names if "." not in name]).sum()
        own_N = torch.stack([counts[name.partition(".")[0]] for name in names])
        share_N = own_N / everything.clamp(min=1)
    factor_N = share_N * counts_N[0] / counts_N.clamp(min=1)
    return factor_N.where(counts_N > 0, torch.zeros_like(factor_N))


def target_counts(sample: dict[str, Any]) -> dict[str, int]:
    """Targets of each objective of a batch; and of electra's discriminator, as `electra.false`."""
    counts = {}
    for name, batch in sample.items():
        if isinstance(batch, dict) and "ntokens" in batch:
            counts[name] = batch["ntokens"]
            if name == "electra":
                counts[f"{name}.false"] = batch["nplaces"]
    return counts
