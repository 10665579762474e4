"""Which token it is, as numbers that a linear gate can read.

A gate that sees hidden states alone changes its mind about a token whenever embeddings move, and
early in training they move far: experts then never get to keep their tokens. Signs drawn for each
token once and for all stay.
"""

from __future__ import annotations

import torch
from torch import Tensor

SIGNS = 64
# The odd constants of the SplitMix64 generator, as signed numbers; int64 wraps around. The first
# has the bits of the golden ratio.
GOLDEN, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685


def token_signs(id_T: Tensor) -> Tensor:
    """float32 [T, 64] of -1 and 1: the bits of SplitMix64's number of each token id.

    They are the same in all layers and on all machines, and those of two tokens differ in about
    half of the places.
    """
    z_T = (id_T.long() + 1) * GOLDEN
    z_T = (z_T ^ _shift(z_T, 30)) * _FIRST
    z_T = (z_T ^ _shift(z_T, 27)) * _SECOND
    z_T = z_T ^ _shift(z_T, 31)
    bit_TS = z_T.unsqueeze(1) >> torch.arange(SIGNS, device=id_T.device) & 1
    return (2 * bit_TS - 1).float()


def _shift(z_T: Tensor, bits: int) -> Tensor:
    """The logical shift to the right, which fills with zeros; that of int64 fills with the sign."""
    return z_T >> bits & (1 << 64 - bits) - 1
