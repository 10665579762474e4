"""Tensor slicing of a model (`--model-parallel-size`): its layers become slices of themselves.

A layer is built whole, as one process builds it, and then sliced in place: so it starts with the
same weights, on however many ranks. Attention is split by heads, feed-forward networks and experts
by hidden values, embeddings and the output projection by symbols. Norms, gates, the biases that are
added after a sum over ranks, and the heads of objectives are replicated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fairscale.nn.model_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    get_model_parallel_rank,
    get_model_parallel_world_size,
)
from fairscale.nn.model_parallel.mappings import (
    copy_to_model_parallel_region,
    gather_from_model_parallel_region,
)
from fairseq.model_parallel.modules import ModelParallelMultiheadAttention
from fairseq.models.roberta import RobertaLMHead
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from zcode_plugin.moe import Experts, MOELayer
from zcode_plugin.parallel.sliced_experts import SlicedExchange, SlicedExperts
from zcode_plugin.parallel.sliced_loss import sliced_label_smoothed_nll_loss
from zcode_plugin.parallel.tensor import TensorSlicing, mark_sliced, own_draws


def slice_layer(layer: Any, slicing: TensorSlicing) -> None:
    """Slice a layer of encoder or decoder in place, its experts too.

    Args:
        layer: as it was built; nothing is wrapped around its parts yet.
        slicing: T > 1, which divides heads and feed-forward widths.
    """
    with torch.random.fork_rng():  # fairscale's layers draw weights of their own first
        for name in ("self_attn", "encoder_attn"):
            attention = getattr(layer, name, None)
            if attention is not None:
                setattr(layer, name, SlicedAttention(attention))
        if hasattr(layer, "moe_layer"):
            _slice_experts(layer.moe_layer, slicing)
        else:
            layer.fc1, layer.fc2 = column(layer.fc1), row(layer.fc2)
            layer.activation_dropout_module = OwnDraws(layer.activation_dropout_module)


def _slice_experts(layer: MOELayer, slicing: TensorSlicing) -> None:
    assert isinstance(layer.experts, Experts)
    layer.experts = SlicedExperts(layer.experts, slicing)
    layer.wrap_exchange = SlicedExchange
    if layer.residual is not None:
        residual: Any = layer.residual
        residual.fc1, residual.fc2 = column(residual.fc1), row(residual.fc2)
        residual.draws = own_draws


def slice_vocabulary(model: Any) -> None:
    """Slice embeddings and the projection, which may be one weight under three names, in place."""
    encoder, decoder = model.encoder, model.decoder
    with torch.random.fork_rng():
        source = SlicedEmbedding(encoder.embed_tokens)
        is_shared = decoder.embed_tokens is encoder.embed_tokens
        target = source if is_shared else SlicedEmbedding(decoder.embed_tokens)
        is_tied = decoder.output_projection.weight is decoder.embed_tokens.weight
        decoder.output_projection = SlicedProjection(
            decoder.output_projection, target.weight if is_tied else None
        )
    encoder.embed_tokens, decoder.embed_tokens = source, target
    if "mlm" in model.heads:
        model.heads["mlm"] = SlicedLMHead(model.heads["mlm"], source)


class SlicedAttention(ModelParallelMultiheadAttention):
    """This tensor rank's heads of an attention; stock's own module with the weights of another."""

    def __init__(self, whole: MultiheadAttention):
        super().__init__(
            whole.embed_dim,
            whole.num_heads,
            whole.kdim,
            whole.vdim,
            dropout=whole.dropout_module.p,
            self_attention=whole.self_attention,
            encoder_decoder_attention=whole.encoder_decoder_attention,
        )
        self.q_proj, self.k_proj = column(whole.q_proj), column(whole.k_proj)
        self.v_proj, self.out_proj = column(whole.v_proj), row(whole.out_proj)


class OwnDraws(nn.Module):
    """A dropout of hidden values that are sliced: each tensor rank draws its own."""

    def __init__(self, dropout: Any):
        super().__init__()
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        dropout: Any = self.dropout
        with own_draws(self.training and dropout.p > 0):
            return dropout(x)


class _SymbolRows:
    """A weight [V/T, M] whose rows are rounded up: its entry in a state dict has the real ones."""

    weight: nn.Parameter
    num_symbols: int

    def _real_rows(self) -> int:
        rows = self.weight.size(0)
        return max(0, min(rows, self.num_symbols - get_model_parallel_rank() * rows))

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        weight = self.weight if keep_vars else self.weight.detach()
        destination[f"{prefix}weight"] = weight[: self._real_rows()]

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        key = f"{prefix}weight"
        given = state_dict.get(key)
        if given is not None and given.shape == self.weight[: self._real_rows()].shape:
            padded = torch.zeros_like(self.weight)
            padded[: len(given)] = given
            state_dict = {**state_dict, key: padded}
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]


class SlicedEmbedding(_SymbolRows, VocabParallelEmbedding):
    """This tensor rank's rows of an embedding."""

    def __init__(self, whole: nn.Embedding):
        self.num_symbols = whole.num_embeddings
        super().__init__(
            _round_up(whole.num_embeddings), whole.embedding_dim, init_method=_copy(whole.weight)
        )
        padding = whole.padding_idx
        if padding is not None:
            # Rows are numbered from 0 on every rank; the gradient of one of them alone is 0.
            own = padding - self.vocab_start_index
            self.padding_idx = own if 0 <= own < self.num_embeddings_per_partition else None
        mark_sliced(self.weight).requires_grad_(whole.weight.requires_grad)

    def scores(self, features: Tensor) -> Tensor:
        """The scores [..., V] of all symbols, by the products of features and embeddings."""
        own = nn.functional.linear(copy_to_model_parallel_region(features), self.weight)
        return gather_from_model_parallel_region(own)[..., : self.num_symbols]


class SlicedLMHead(_SymbolRows, RobertaLMHead):
    """The head of `mlm`, of which the embedding alone is sliced.

    Args:
        whole: the head.
        embedding: whose weight it shares.
    """

    def __init__(self, whole: RobertaLMHead, embedding: SlicedEmbedding):
        nn.Module.__init__(self)
        self.num_symbols = embedding.num_symbols
        self.dense, self.activation_fn = whole.dense, whole.activation_fn
        self.layer_norm = whole.layer_norm
        self.weight, self.bias = embedding.weight, whole.bias
        self._scores = embedding.scores

    def forward(
        self, features: Tensor, masked_tokens: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """See `RobertaLMHead.forward`."""
        if masked_tokens is not None:
            features = features[masked_tokens, :]
        x = self.layer_norm(self.activation_fn(self.dense(features)))
        return self._scores(x) + self.bias


class SlicedProjection(_SymbolRows, ColumnParallelLinear):
    """This tensor rank's scores, gathered to those of all symbols, [..., V].

    A criterion that can do with its own symbols' alone, [..., up to V/T], says so: see `keeping`
    and `loss`.

    Args:
        whole: the projection.
        tied: the sliced weight of the embedding, where the projection has the same.
    """

    def __init__(self, whole: nn.Linear, tied: nn.Parameter | None):
        self.num_symbols = whole.out_features
        super().__init__(
            whole.in_features,
            _round_up(whole.out_features),
            bias=False,
            init_method=_copy(whole.weight),
        )
        if tied is not None:
            self.weight = tied
        mark_sliced(self.weight).requires_grad_(whole.weight.requires_grad)

    def forward(self, features: Tensor) -> Tensor:
        known = self.num_symbols if self.gather_output else self._real_rows()
        return super().forward(features)[..., :known].contiguous()

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Within the block the output is this rank's scores alone."""
        self.gather_output = False
        try:
            yield
        finally:
            self.gather_output = True

    def loss(
        self, scores: Tensor, target: Tensor, epsilon: float, padding: int
    ) -> tuple[Tensor, Tensor]:
        """Loss of kept scores [..., own symbols] and targets [...], with label smoothing and not.

        The sums that fairseq's `label_smoothed_nll_loss` gives.
        """
        return sliced_label_smoothed_nll_loss(
            scores.view(-1, scores.size(-1)),
            target.view(-1),
            epsilon,
            ignore_index=padding,
            first=get_model_parallel_rank() * self.output_size_per_partition,
            num_symbols=self.num_symbols,
        )


def sliced_projection(model: Any) -> SlicedProjection | None:
    """The output projection of a model whose layers are sliced; None of others."""
    projection = getattr(getattr(model, "decoder", None), "output_projection", None)
    return projection if isinstance(projection, SlicedProjection) else None


def column(whole: nn.Linear) -> ColumnParallelLinear:
    """This tensor rank's outputs of a linear map, [..., O/T]."""
    sliced = ColumnParallelLinear(
        whole.in_features,
        whole.out_features,
        bias=whole.bias is not None,
        gather_output=False,
        init_method=_copy(whole.weight),
    )
    if whole.bias is not None:
        parts = whole.bias.data.split(sliced.output_size_per_partition)
        sliced.bias.data.copy_(parts[get_model_parallel_rank()])
        mark_sliced(sliced.bias)
    mark_sliced(sliced.weight)
    return sliced


def row(whole: nn.Linear) -> RowParallelLinear:
    """A linear map of inputs that are sliced, summed over tensor ranks; its bias is replicated."""
    sliced = RowParallelLinear(
        whole.in_features,
        whole.out_features,
        bias=whole.bias is not None,
        input_is_parallel=True,
        init_method=_copy(whole.weight),
    )
    if whole.bias is not None:
        sliced.bias = whole.bias
    mark_sliced(sliced.weight)
    return sliced


def _round_up(symbols: int) -> int:
    size = get_model_parallel_world_size()
    return -(-symbols // size) * size


def _copy(whole: Tensor) -> Callable[[Tensor], Tensor]:
    """For fairscale's layers, which slice what this writes: the rows of `whole`, and zeros."""

    def write(weight: Tensor) -> Tensor:
        with torch.no_grad():
            weight.zero_()
            weight[: len(whole)] = whole
        return weight

    return write
