"""The forms of parallelism, and the bytes that each leaves on a rank and sends between ranks.

Legend: W ranks, T of them slice each tensor, D = W / T data-parallel ranks, P of these share the
experts, R = D / P hold the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from fairseq.models.transformer import DEFAULT_MIN_PARAMS_TO_WRAP

from zcode_plugin.errors import UserError
from zcode_plugin.planning.activations import Activations
from zcode_plugin.planning.shapes import ModelShape


@dataclass(frozen=True)
class ElementBytes:
    """Bytes of one trained element, with Adam.

    Attributes:
        compute: of one number that is computed with.
        parameter: with `--fp16` and `--bf16` 2 and 4 for the float32 copy.
        gradient: the same.
        optimizer: two moments in float32.
        stepped: of what the optimizer steps, the float32 copy where there is one.
    """

    compute: int = 4
    parameter: int = 4
    gradient: int = 4
    optimizer: int = 8
    stepped: int = 4

    @property
    def sharded(self) -> ElementBytes:
        """With zero 3: fairscale keeps shards in float32 alone, and halves what it gathers."""
        return replace(self, parameter=4, gradient=4)


_HALF, _LEAN_HALF = ElementBytes(2, 6, 6, 8), ElementBytes(2, 2, 2, 8, stepped=2)
ELEMENTS: dict[str, ElementBytes] = {
    "fp32": ElementBytes(),
    "fp16": _HALF,
    "bf16": _HALF,
    "memory-efficient-fp16": _LEAN_HALF,
    "memory-efficient-bf16": _LEAN_HALF,
}


@dataclass(frozen=True)
class Form:
    """A form of parallelism.

    Attributes:
        world: W.
        expert_parallel: P, `--expert-parallel-size`.
        tensor_parallel: T, `--model-parallel-size`.
        zero: 0; 1, the optimizer's state is sharded; 3, parameters and gradients, too.
        offload: shards live in the host's memory (with zero 3).
        least_wrapped: elements of a layer from which it is gathered by itself, with zero 3;
            `--min-params-to-wrap`, or 0 with `--checkpoint-activations`.
    """

    world: int
    expert_parallel: int = 1
    tensor_parallel: int = 1
    zero: Literal[0, 1, 3] = 0
    offload: bool = False
    least_wrapped: int = DEFAULT_MIN_PARAMS_TO_WRAP

    def __post_init__(self) -> None:
        if self.world < 1 or self.tensor_parallel < 1 or self.world % self.tensor_parallel:
            raise UserError(
                f"--model-parallel-size {self.tensor_parallel} must divide --ranks {self.world}"
            )
        if self.expert_parallel < 1 or self.data % self.expert_parallel:
            raise UserError(
                f"--expert-parallel-size {self.expert_parallel} must divide the {self.data} ranks "
                "that see different data"
            )

    @property
    def data(self) -> int:
        """D."""
        return self.world // self.tensor_parallel

    @property
    def replicas(self) -> int:
        """R."""
        return self.data // self.expert_parallel

    @property
    def name(self) -> str:
        """As the paper writes it: `E+D+Z1`."""
        parts = ["E"] if self.expert_parallel > 1 else []
        parts += ["D"] if self.replicas > 1 and not self.offload and self.zero != 3 else []
        parts += {0: [], 1: ["Z1"], 3: ["Z-Off" if self.offload else "Z3"]}[self.zero]
        parts += ["M"] if self.tensor_parallel > 1 else []
        return "+".join(parts) or "D"

    def flags(self) -> list[str]:
        """Of fairseq-train."""
        flags = ["--expert-parallel-size", str(self.expert_parallel)]
        if self.tensor_parallel > 1:
            flags += ["--model-parallel-size", str(self.tensor_parallel)]
        if self.zero == 1:
            flags += ["--zero-sharding", "os"]
        flags += ["--ddp-backend", "fully_sharded" if self.zero == 3 else "legacy_ddp"]
        return [*flags, "--cpu-offload"] if self.offload else flags


@dataclass(frozen=True)
class Memory:
    """Bytes on a rank; `host` is the host's memory for this rank.

    Attributes:
        gathered: with zero 3, the parameters that are whole at once, see `_gathered`.
        exchange: buffers of one exchange of tokens, there and back.
    """

    parameters: float
    gradients: float
    optimizer: float
    gathered: float = 0.0
    activations: float = 0.0
    exchange: float = 0.0
    host: float = 0.0

    @property
    def total(self) -> float:
        """On the device."""
        return (
            self.parameters + self.gradients + self.optimizer
            + self.gathered + self.activations + self.exchange
        )  # fmt: skip


def state_memory(shape: ModelShape, form: Form, element: ElementBytes) -> Memory:
    """What a rank holds between updates, and with zero 3 what it gathers in them."""
    element = element.sharded if form.zero == 3 else element
    dense = shape.dense - shape.sliced + shape.sliced / form.tensor_parallel
    experts = shape.experts / (form.expert_parallel * form.tensor_parallel)
    whole, sharded = dense + experts, dense / form.data + experts / form.replicas
    held = sharded if form.zero == 3 else whole
    moments = sharded if form.zero else whole
    if form.zero == 1:  # a parameter's state is not cut: its owner may have more than a share
        moments += max(0, shape.largest - dense / form.data)
    memory = Memory(element.parameter * held, element.gradient * held, element.optimizer * moments)
    if form.zero != 3:
        return memory
    gathered = element.compute * _gathered(shape, form)
    if not form.offload:
        return replace(memory, gathered=gathered)
    return Memory(0, 0, 0, gathered=gathered, host=memory.total)


def _gathered(shape: ModelShape, form: Form) -> float:
    """Elements that are whole at once: all that no wrapper holds, and the largest that one does.

    A layer is wrapped where it has `least_wrapped` elements. Experts that not all ranks hold have a
    wrapper of their own, whatever their number, and count as the shard that it has.
    """
    layers = shape.encoder_layers + shape.decoder_layers
    with_experts = len(shape.expert_layers)
    # What is no layer's is mostly embeddings; a layer is about 1 / layers of what is.
    dense = shape.sliced / form.tensor_parallel / layers
    experts = shape.experts / max(1, with_experts) / (form.expert_parallel * form.tensor_parallel)
    apart = form.expert_parallel > 1
    counted = experts / form.replicas if apart else experts
    alone = float(shape.dense - shape.sliced)
    wrapped = [0.0]
    if dense >= form.least_wrapped:
        wrapped.append(dense)
    else:
        alone += dense * (layers - with_experts)
    if dense + counted >= form.least_wrapped:
        wrapped.append(dense + experts)
    else:
        alone += with_experts * (dense if apart else dense + experts)
        wrapped.append(experts if apart else 0.0)
    return alone + max(wrapped)


def training_memory(
    shape: ModelShape,
    form: Form,
    element: ElementBytes,
    activations: Activations,
    vocabulary: int,
    tokens: int,
    checkpointed: bool = False,
) -> Memory:
    """`state_memory`, and what one training pass of so many tokens on each side adds.

    Args:
        checkpointed: with `--checkpoint-activations`, which keeps the input of each layer and
            computes the rest a second time.
    """
    memory = state_memory(shape, form, element)
    layers = layers_by_kind(shape)
    if checkpointed:
        inside = 4.0 * shape.width * sum(layers.values())
        inside += max(activations.layers[kind] for kind, number in layers.items() if number)
    else:
        inside = sum(activations.layers[kind] * number for kind, number in layers.items())
    # Activations are measured in float32, which the output's log-probabilities always are.
    share = element.compute / 4
    per_token = share * (inside + activations.outside) + activations.output * vocabulary
    rows = tokens * shape.top_k * (shape.capacity_factor or 1.0)
    exchange = 4 * rows * shape.width * element.compute if form.expert_parallel > 1 else 0.0
    return replace(memory, activations=per_token * tokens, exchange=exchange)


def layers_by_kind(shape: ModelShape) -> dict[tuple[str, bool], int]:
    """How many layers there are of each side, with and without experts.

    MoE layers are taken to be spread over both sides as layers are.
    """
    total = shape.encoder_layers + shape.decoder_layers
    of_encoder = round(len(shape.expert_layers) * shape.encoder_layers / total)
    of_decoder = len(shape.expert_layers) - of_encoder
    return {
        ("encoder", False): shape.encoder_layers - of_encoder,
        ("encoder", True): of_encoder,
        ("decoder", False): shape.decoder_layers - of_decoder,
        ("decoder", True): of_decoder,
    }


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends, of a training pass per token that it sees on each side.

    Attributes:
        exchange: per MoE layer: four exchanges, with slices each of 1/T of a row.
        slicing: per layer, the mean of all: sums and gathers over tensor ranks, see `_slicing`.
        update: per update: gradients, and with zero parameters.
    """

    exchange: float
    slicing: float
    update: float


def traffic(shape: ModelShape, form: Form, element: ElementBytes) -> Traffic:
    """What is sent; of sums and gathers what a ring sends."""
    row = shape.width * element.compute
    dense = shape.dense - shape.sliced + shape.sliced / form.tensor_parallel
    experts = shape.experts / (form.expert_parallel * form.tensor_parallel)
    # A sum of gradients, or a share of it and two gathers of parameters; owners send what they
    # have stepped.
    sent = {
        0: 2 * element.compute,
        1: 2 * element.compute + element.stepped,
        3: 3 * element.compute,
    }
    return Traffic(
        exchange=4 * shape.top_k * row / form.tensor_parallel * _others(form.expert_parallel),
        slicing=_slicing(shape, form) * row * _others(form.tensor_parallel),
        update=sent[form.zero] * (dense * _others(form.data) + experts * _others(form.replicas)),
    )


def _slicing(shape: ModelShape, form: Form) -> float:
    """Rows that all tensor ranks need of each other for a token on each side, by layer.

    What is sliced needs a sum of its outputs forwards, and one of the gradients of each of its
    inputs backwards, of which attention has three: q, k and v. A sum is a ring's: twice a row. Each
    exchange of tokens is of parts of rows, which are gathered once forwards and once backwards.
    """
    attention = 4 * (shape.encoder_layers + 2 * shape.decoder_layers)
    layers = shape.encoder_layers + shape.decoder_layers
    with_experts = len(shape.expert_layers)
    networks = 2 * (layers - with_experts + shape.top_k * with_experts)
    embeddings = 3  # both embeddings forwards, the output's projection backwards
    gathers = 4 * shape.top_k * with_experts if form.expert_parallel > 1 else 0
    return (2 * (attention + networks + embeddings) + gathers) / layers


def _others(ranks: int) -> float:
    """The share that is not a rank's own."""
    return (ranks - 1) / ranks


def largest_experts(
    shape: ModelShape, form: Form, element: ElementBytes, fixed: float, device: float, host: float
) -> int:
    """The most experts of a layer with which the model still fits; a multiple of P, or 0.

    Args:
        fixed: bytes on the device that do not depend on experts: activations, buffers.
        device, host: bytes of each rank.
    """
    fits, step = 0, 1
    while step:
        count = fits + step
        scaled = shape.with_experts(count * form.expert_parallel)
        memory = state_memory(scaled, form, element)
        if (
            shape.expert_layers
            and memory.total + fixed <= device
            and memory.host <= host
            and count < 2**40
        ):
            fits, step = count, step * 2
        else:
            step //= 2
    return fits * form.expert_parallel
