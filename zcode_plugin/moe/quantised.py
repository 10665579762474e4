"""Experts whose weights are integers of 8 or 4 bits, to translate with.

Only the experts' weights are quantised, not what they are multiplied with, as in "Who Says
Elephants Can't Run" (arXiv 2211.10017) and MoQE (arXiv 2310.02410), which find expert weights
robust to it: symmetric, with one scale for each output channel,

    weight[o, i] = scale[o] x integer[o, i],    |integer| <= 127 or 7.

A matrix becomes float when it is used, one at a time: torch's own operators, on every device and
in every dtype, and what a row becomes does not depend on the rows beside it. torch's kernels for
such weights (`_weight_int8pack_mm`, `_weight_int4pack_mm_for_cpu`) take 5 to 80 times as long as a
float32 multiplication on CPUs for all but a single row; those that are faster (`_int_mm`,
`quantized.linear_dynamic`) round the activations, too, and either saturate on CPUs without VNNI or
give a row a scale that depends on its batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zcode_plugin.moe.expert_stacks import ExpertStacks

# The largest integer of so many bits; the one below its negative is not used.
LARGEST = {8: 127, 4: 7}
DTYPES = {8: torch.int8, 4: torch.uint8}


def quantise(weight_OI: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Round a matrix to integers, each output channel in steps of its own.

    |weight - scale x integer| <= (1/2 + 1e-5) scale, where the 1e-5 is the rounding of float32.

    Args:
        weight_OI: [O, I], finite.
        bits: 8 or 4.

    Returns:
        int8 [O, I], or the same packed by `pack`; and the scales, float32 [O].
    """
    weight_OI = weight_OI.float()
    # At least the smallest normal number: a channel of zeros, too, has a scale to divide by.
    scale_O = weight_OI.abs().amax(1) / LARGEST[bits]
    scale_O = scale_O.clamp_min(torch.finfo(torch.float32).tiny)
    integer_OI = (weight_OI / scale_O[:, None]).round_()
    integer_OI = integer_OI.clamp_(-LARGEST[bits], LARGEST[bits]).to(torch.int8)
    return (pack(integer_OI) if bits == 4 else integer_OI), scale_O


def dequantise(stored: Tensor, scale_O: Tensor, inputs: int) -> Tensor:
    """The float32 matrix [O, I] that stored integers and their scales stand for; `inputs` is I."""
    return unpack(stored, inputs) * scale_O[:, None]


def pack(integer_OI: Tensor) -> Tensor:
    """Two integers of -8 to 7 in a byte: uint8 [O, ceil(I / 2)].

    The lower four bits hold the first half of a row, the upper four the second, each in two's
    complement.
    """
    half = (integer_OI.size(1) + 1) // 2
    lower, upper = integer_OI[:, :half], integer_OI[:, half:]
    upper = nn.functional.pad(upper, (0, half - upper.size(1)))
    return ((upper << 4) | (lower & 15)).view(torch.uint8)


def unpack(stored: Tensor, inputs: int) -> Tensor:
    """The int8 matrix [O, I] of what `quantise` returned; `inputs` is I."""
    if stored.dtype == torch.int8:
        return stored
    pairs = stored.view(torch.int8)
    # A shift to the right keeps the sign.
    return torch.cat([(pairs << 4) >> 4, pairs >> 4], 1)[:, :inputs]


def quantised_linear(x_AI: Tensor, stored: Tensor, scale_O: Tensor, bias_O: Tensor) -> Tensor:
    """x @ weight.T + bias, [A, O] in x's dtype, with a weight that `quantise` returned."""
    integer_OI = unpack(stored, x_AI.size(1))
    if x_AI.dtype == torch.float32:
        # For few rows there are fewer outputs than weights to scale.
        y_AO = torch.mm(x_AI, integer_OI.float().t())
        return torch.addcmul(bias_O, y_AO, scale_O)
    # Sums of unscaled products could overflow in float16.
    weight_OI = (integer_OI * scale_O[:, None]).to(x_AI.dtype)
    return nn.functional.linear(x_AI, weight_OI, bias_O)


class QuantisedExperts(ExpertStacks):
    """All experts of a layer, their weights as integers: fc1, activation, fc2.

    Entries of an expert: `N.fc1.weight`, int8 [F, M] or uint8 [F, ceil(M / 2)], `N.fc1.scale`,
    float32 [F], `N.fc1.bias`, [F], and the same of fc2. What is built holds zeros, for a state dict
    to fill.

    Args:
        model_dim, hidden_dim: M and F.
        num_local: experts of the layer, all on this rank.
        bits: 8 or 4.
        activation: elementwise function between fc1 and fc2.
    """

    fc1_weight: Tensor
    fc1_scale: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_scale: Tensor
    fc2_bias: Tensor

    def __init__(
        self,
        model_dim: int,
        hidden_dim: int,
        num_local: int,
        bits: int,
        *,
        activation: Callable[[Tensor], Tensor] = nn.functional.relu,
    ):
        super().__init__()
        self.num_local, self.first = num_local, 0
        self.activation = activation
        for name, outputs, inputs in (
            ("fc1", hidden_dim, model_dim),
            ("fc2", model_dim, hidden_dim),
        ):
            width = inputs if bits == 8 else (inputs + 1) // 2
            weight = torch.zeros(num_local, outputs, width, dtype=DTYPES[bits])
            self.register_buffer(f"{name}_weight", weight)
            self.register_buffer(f"{name}_scale", torch.zeros(num_local, outputs))
            self.register_buffer(f"{name}_bias", torch.zeros(num_local, outputs))

    def forward(self, x_AM: Tensor, kept: list[int]) -> Tensor:
        """See `ExpertStacks.forward`.

        Raises:
            RuntimeError: in training; integers have no gradients.
        """
        if self.training:
            raise RuntimeError("quantised experts cannot be trained")
        y_AM = torch.empty_like(x_AM)
        start = 0
        for expert, rows in enumerate(kept):
            if rows:
                place = slice(start, start + rows)
                y_AM[place] = self._apply_expert(x_AM[place], expert)
            start += rows
        return y_AM

    def _apply_expert(self, x_RM: Tensor, expert: int) -> Tensor:
        hidden_RF = quantised_linear(
            x_RM, self.fc1_weight[expert], self.fc1_scale[expert], self.fc1_bias[expert]
        )
        return quantised_linear(
            self.activation(hidden_RF),
            self.fc2_weight[expert],
            self.fc2_scale[expert],
            self.fc2_bias[expert],
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantisedExperts:
        # Scales stay float32 in a model of float16, in which those of small weights would be 0.
        scales = self.fc1_scale, self.fc2_scale
        super()._apply(fn, recurse)
        device = self.fc1_weight.device
        self.fc1_scale, self.fc2_scale = (scale.to(device) for scale in scales)
        return self

    def stacks(self) -> list[tuple[str, Tensor]]:
        """See `ExpertStacks.stacks`."""
        return [
            (f"{layer}.{part}", getattr(self, f"{layer}_{part}"))
            for layer in ("fc1", "fc2")
            for part in ("weight", "scale", "bias")
        ]
