"""An encoder-decoder Transformer with Mixture-of-Experts layers, after fairseq's Transformer.

Names of weights are those of the checkpoint it was exported from. No token is ever dropped by an
expert, so that a translation does not depend on its batch.

Legend of the shape suffixes: B sentences, S source and T target positions, N tokens, M width,
E experts, K experts of a token, A assignments of tokens to experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from .configuration_zcode_moe import ZcodeMoeConfig

# transformers renamed the field of outputs that holds the cache.
_CACHE = "cache" if "cache" in Seq2SeqLMOutput.__dataclass_fields__ else "past_key_values"
# Of the multiplicative hash of the hash gate and of SplitMix64; int64 wraps around.
_MULTIPLIER, _HIGH_BITS = -7046029254386353131, 33
_SECOND_MULTIPLIER, _THIRD_MULTIPLIER = -4658895280553007687, -7723592293110705685
_SIGNS = 64

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "relu_squared": lambda x: functional.relu(x).pow(2),
    "gelu": lambda x: functional.gelu(x.float()).type_as(x),
    "gelu_accurate": lambda x: functional.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "linear": lambda x: x,
}


class SinusoidalPositions(nn.Module):
    """Rows of sines and cosines, of any number; made on first use, never saved."""

    def __init__(self, width: int, padding: int):
        super().__init__()
        self.width, self.padding = width, padding
        self._table = torch.empty(0, width)

    def forward(self, position_BT: Tensor, rows: int, like: Tensor) -> Tensor:
        """[B, T, M] in the dtype and on the device of `like`; positions are below `rows`."""
        table = self._table
        if len(table) < rows or (table.dtype, table.device) != (like.dtype, like.device):
            table = self._table = self._build(max(rows, 1024)).to(like)
        return table[position_BT]

    def _build(self, rows: int) -> Tensor:
        half = self.width // 2
        rate = torch.exp(torch.arange(half).float() * -(math.log(10000) / (half - 1)))
        angle = torch.arange(rows).float()[:, None] * rate
        table = torch.cat([angle.sin(), angle.cos()], dim=1)
        table = functional.pad(table, (0, self.width % 2))
        table[self.padding] = 0
        return table


class LearnedPositions(nn.Embedding):
    """A table of trained rows."""

    def forward(  # type: ignore[override]
        self, position_BT: Tensor, rows: int, like: Tensor
    ) -> Tensor:
        """[B, T, M]."""
        return super().forward(position_BT)


class Attention(nn.Module):
    """Multi-head attention; keys and values may come from a cache."""

    def __init__(self, width: int, source_width: int, heads: int, dropout: float, layer: int):
        super().__init__()
        self.heads, self.dropout, self.layer = heads, dropout, layer
        self.k_proj = nn.Linear(source_width, width)
        self.v_proj = nn.Linear(source_width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        x_BTM: Tensor,
        source_BSM: Tensor | None,
        mask: Tensor | None,
        cache: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """[B, T, M]; `source_BSM` None is self-attention; `mask`, bool, is True where to look."""
        key, value = self._keys(x_BTM, source_BSM, cache)
        output = functional.scaled_dot_product_attention(
            self._split(self.q_proj(x_BTM)),
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(output.transpose(1, 2).flatten(2))

    def _keys(
        self, x_BTM: Tensor, source_BSM: Tensor | None, cache: EncoderDecoderCache | None
    ) -> tuple[Tensor, Tensor]:
        if source_BSM is not None and cache is not None and cache.is_updated.get(self.layer):
            held = cache.cross_attention_cache.layers[self.layer]
            return held.keys, held.values
        input_BSM = x_BTM if source_BSM is None else source_BSM
        key, value = self._split(self.k_proj(input_BSM)), self._split(self.v_proj(input_BSM))
        if cache is None:
            return key, value
        if source_BSM is None:
            return cache.self_attention_cache.update(key, value, self.layer)
        cache.is_updated[self.layer] = True
        return cache.cross_attention_cache.update(key, value, self.layer)

    def _split(self, x_BTM: Tensor) -> Tensor:
        return x_BTM.unflatten(2, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """fc1, activation, fc2: an expert, or the dense part of a residual expert."""

    def __init__(self, config: ZcodeMoeConfig, width: int, hidden: int):
        super().__init__()
        self.activation = _ACTIVATIONS[config.activation_function]
        self.dropout = config.activation_dropout
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., M]."""
        hidden = self.activation(self.fc1(x))
        return self.fc2(functional.dropout(hidden, self.dropout, self.training))


class ResidualExpert(FeedForward):
    """A dense network beside the experts, mixed with their output (PR-MoE, arXiv 2201.05596)."""

    def __init__(self, config: ZcodeMoeConfig, width: int, hidden: int):
        super().__init__(config, width, hidden)
        self.coefficient = nn.Linear(width, 2)

    def mix(self, x: Tensor, routed: Tensor) -> Tensor:
        """[..., M]."""
        coefficient = self.coefficient(x).softmax(dim=-1)
        return routed * coefficient[..., :1] + self(x) * coefficient[..., 1:]


def token_signs(id_N: Tensor) -> Tensor:
    """float32 [N, 64] of -1 and 1: the bits of SplitMix64's number of each token id."""

    def shift(bits: int) -> Tensor:  # fills with zeros
        return z_N >> bits & (1 << 64 - bits) - 1

    z_N = (id_N.long() + 1) * _MULTIPLIER
    z_N = (z_N ^ shift(30)) * _SECOND_MULTIPLIER
    z_N = (z_N ^ shift(27)) * _THIRD_MULTIPLIER
    z_N = z_N ^ shift(31)
    bit_NS = z_N.unsqueeze(1) >> torch.arange(_SIGNS, device=id_N.device) & 1
    return (2 * bit_NS - 1).float()


class Gate(nn.Module):
    """Scores all experts for each token and chooses K."""

    def __init__(self, config: ZcodeMoeConfig, width: int, experts: int):
        super().__init__()
        self.config = config
        signs = _SIGNS if config.gate_sees_token else 0
        self.wg = nn.Linear(width + signs, experts, bias=False)
        bias = torch.zeros(experts)
        self.selection_bias = (
            nn.Parameter(bias, requires_grad=False) if config.selection_bias else None
        )

    def forward(self, x_NM: Tensor, id_N: Tensor) -> tuple[Tensor, Tensor]:
        """Combine weights and experts of each token, both [N, K]."""
        weight = self.wg.weight
        if self.config.gate_in_float32:
            x_NM, weight = x_NM.float(), weight.float()
        if self.config.gate_sees_token:
            x_NM = torch.cat((x_NM, token_signs(id_N).to(x_NM.dtype)), dim=1)
        score_NE = functional.linear(x_NM, weight).float().softmax(dim=1)
        steered_NE = score_NE
        if self.selection_bias is not None:
            steered_NE = score_NE.detach() + self.selection_bias.float()
        expert_NK = steered_NE.topk(self.config.experts_per_token, dim=1).indices
        score_NK = score_NE.gather(1, expert_NK)
        if self.config.normalize_gate:
            total_N1 = score_NK.sum(1, keepdim=True)
            score_NK = score_NK / total_N1.clamp(min=torch.finfo(torch.float32).eps)
        return score_NK, expert_NK


class MoeLayer(nn.Module):
    """Experts in the place of a feed-forward network."""

    def __init__(self, config: ZcodeMoeConfig, width: int, hidden: int, experts: int):
        super().__init__()
        self.top_k = config.experts_per_token
        self.gate = Gate(config, width, experts) if config.gate == "learned" else None
        self.experts = nn.ModuleList(FeedForward(config, width, hidden) for _ in range(experts))
        self.residual = ResidualExpert(config, width, hidden) if config.residual_expert else None

    def forward(self, x_BTM: Tensor, id_BT: Tensor, keep_BT: Tensor | None) -> Tensor:
        """[B, T, M]; experts give 0 to tokens where `keep_BT` is False."""
        x_NM = x_BTM.flatten(0, 1)
        weight_NK, expert_NK = self._choose(x_NM, id_BT.flatten())
        count, experts = self.top_k, len(self.experts)
        if keep_BT is not None:  # padding sorts behind the last expert
            expert_NK = expert_NK.masked_fill(~keep_BT.reshape(-1, 1), experts)
        order_A = expert_NK.flatten().argsort(stable=True)
        sizes = expert_NK.flatten().bincount(minlength=experts + 1).tolist()
        output_NM = torch.zeros_like(x_NM)
        for expert, row_A in zip(self.experts, order_A.split(sizes), strict=False):
            if len(row_A):
                token_A = row_A // count
                y_AM = expert(x_NM[token_A])
                weight_A = weight_NK.flatten()[row_A].to(y_AM.dtype)
                # Under autocast an expert's output has another dtype than its input.
                y_AM = (y_AM * weight_A[:, None]).to(output_NM.dtype)
                output_NM = output_NM.index_add(0, token_A, y_AM)
        output_BTM = output_NM.view_as(x_BTM)
        return output_BTM if self.residual is None else self.residual.mix(x_BTM, output_BTM)

    def _choose(self, x_NM: Tensor, id_N: Tensor) -> tuple[Tensor, Tensor]:
        if self.gate is not None:
            return self.gate(x_NM, id_N)
        hash_N = ((id_N.long() + 1) * _MULTIPLIER) >> _HIGH_BITS & 0x7FFFFFFF
        choice_K = torch.arange(self.top_k, device=id_N.device)
        expert_NK = (hash_N[:, None] + choice_K) % len(self.experts)
        return torch.full_like(expert_NK, 1 / self.top_k, dtype=torch.float32), expert_NK


class Layer(nn.Module):
    """A layer of the encoder or the decoder, dense or with experts."""

    def __init__(self, config: ZcodeMoeConfig, side: str, index: int):
        super().__init__()
        width: int = getattr(config, f"{side}_embed_dim")
        heads: int = getattr(config, f"{side}_attention_heads")
        hidden: int = getattr(config, f"{side}_ffn_dim")
        experts: int = getattr(config, f"{side}_experts")[index]
        self.normalize_before: bool = getattr(config, f"{side}_normalize_before")
        self.dropout = config.dropout
        attention = config.attention_dropout
        self.self_attn = Attention(width, width, heads, attention, index)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        if side == "decoder":
            self.encoder_attn = Attention(width, config.encoder_embed_dim, heads, attention, index)
            self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.has_experts = experts > 0
        if self.has_experts:
            self.moe_layer = MoeLayer(config, width, hidden, experts)
        else:
            self.activation = _ACTIVATIONS[config.activation_function]
            self.activation_dropout = config.activation_dropout
            self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self,
        x_BTM: Tensor,
        id_BT: Tensor,
        keep_BT: Tensor | None,
        mask: Tensor | None,
        source: tuple[Tensor, Tensor | None] | None = None,
        cache: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """[B, T, M]; `source` is the encoder's output and its mask, in the decoder."""
        x_BTM = self._block(
            x_BTM, self.self_attn_layer_norm, lambda x: self.self_attn(x, None, mask, cache)
        )
        if source is not None:
            x_BTM = self._block(
                x_BTM,
                self.encoder_attn_layer_norm,
                lambda x: self.encoder_attn(x, *source, cache),
            )
        return self._block(
            x_BTM, self.final_layer_norm, lambda x: self._feed_forward(x, id_BT, keep_BT)
        )

    def _block(
        self, x_BTM: Tensor, norm: nn.Module, function: Callable[[Tensor], Tensor]
    ) -> Tensor:
        y_BTM = function(norm(x_BTM) if self.normalize_before else x_BTM)
        x_BTM = x_BTM + functional.dropout(y_BTM, self.dropout, self.training)
        return x_BTM if self.normalize_before else norm(x_BTM)

    def _feed_forward(self, x_BTM: Tensor, id_BT: Tensor, keep_BT: Tensor | None) -> Tensor:
        if self.has_experts:
            return self.moe_layer(x_BTM, id_BT, keep_BT)
        hidden = self.activation(self.fc1(x_BTM))
        return self.fc2(functional.dropout(hidden, self.activation_dropout, self.training))


class Stack(nn.Module):
    """What encoder and decoder share: embeddings, layers, the last norm."""

    def __init__(self, config: ZcodeMoeConfig, side: str, has_embedding: bool):
        super().__init__()
        self.config = config
        width: int = getattr(config, f"{side}_embed_dim")
        kind: str = getattr(config, f"{side}_positions")
        longest = {"encoder": config.max_source_positions, "decoder": config.max_target_positions}
        padding = config.pad_token_id
        if has_embedding:
            self.embed_tokens = nn.Embedding(config.vocab_size, width, padding)
        self.scale = math.sqrt(width) if config.scale_embedding else 1.0
        self.embed_positions: nn.Module | None = None
        if kind == "learned":
            self.embed_positions = LearnedPositions(longest[side] + padding + 1, width, padding)
        elif kind == "sinusoidal":
            self.embed_positions = SinusoidalPositions(width, padding)
        self.layernorm_embedding = nn.LayerNorm(width) if config.layernorm_embedding else None
        count: int = getattr(config, f"{side}_layers")
        self.layers = nn.ModuleList(Layer(config, side, index) for index in range(count))
        has_norm: bool = getattr(config, f"{side}_final_norm")
        self.layer_norm = nn.LayerNorm(width) if has_norm else None

    def embed(self, id_BT: Tensor, table_VM: Tensor, keep_BS: Tensor) -> Tensor:
        """[B, T, M]; `keep_BS` is True at what is no padding, of T and all positions before."""
        x_BTM = self.scale * functional.embedding(id_BT, table_VM)
        if self.embed_positions is not None:
            # Padding has no position of its own, and does not count.
            padding = self.config.pad_token_id
            position_BS = keep_BS.long().cumsum(1) * keep_BS + padding
            rows = keep_BS.size(1) + padding + 1
            x_BTM = x_BTM + self.embed_positions(position_BS[:, -id_BT.size(1) :], rows, x_BTM)
        if self.layernorm_embedding is not None:
            x_BTM = self.layernorm_embedding(x_BTM)
        return functional.dropout(x_BTM, self.config.dropout, self.training)

    def finish(self, x_BTM: Tensor) -> Tensor:
        """[B, T, M]."""
        return x_BTM if self.layer_norm is None else self.layer_norm(x_BTM)


class Encoder(Stack):
    """Reads the source."""

    main_input_name = "input_ids"

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """`last_hidden_state` is [B, S, M]; without a mask, padding is told by its id."""
        keep_BS = input_ids != self.config.pad_token_id
        if attention_mask is not None:
            keep_BS = attention_mask.bool()
        x_BSM = self.embed(input_ids, self.embed_tokens.weight, keep_BS) * keep_BS[..., None]
        for layer in self.layers:
            x_BSM = layer(x_BSM, input_ids, keep_BS, keep_BS[:, None, None])
        return BaseModelOutput(last_hidden_state=self.finish(x_BSM))


class Decoder(Stack):
    """Writes the target."""

    def __init__(self, config: ZcodeMoeConfig):
        super().__init__(config, "decoder", not config.share_all_embeddings)
        if not (config.share_all_embeddings or config.share_decoder_input_output_embed):
            self.output_projection = nn.Linear(
                config.decoder_embed_dim, config.vocab_size, bias=False
            )

    def forward(
        self,
        id_BT: Tensor,
        table_VM: Tensor,
        source: tuple[Tensor, Tensor | None],
        keep_BS: Tensor | None,
        cache: EncoderDecoderCache | None,
    ) -> Tensor:
        """[B, T, M]; `keep_BS` is the mask of what is held in the cache and of `id_BT`."""
        past = 0 if cache is None else cache.get_seq_length()
        is_step = id_BT.size(1) == 1 and keep_BS is None
        if keep_BS is None:
            keep_BS = id_BT != self.config.pad_token_id
            keep_BS = functional.pad(keep_BS, (past, 0), value=True)
        x_BTM = self.embed(id_BT, table_VM, keep_BS)
        # A single new token looks at everything that is there.
        mask = None if is_step else _causal_mask(keep_BS, id_BT.size(1))
        for layer in self.layers:
            x_BTM = layer(x_BTM, id_BT, None, mask, source, cache)
        return self.finish(x_BTM)


def _causal_mask(keep_BS: Tensor, new: int) -> Tensor:
    """bool [B, 1, T, S], for the last T = `new` positions of S; every token sees itself."""
    total = keep_BS.size(1)
    position_S = torch.arange(total, device=keep_BS.device)
    position_T1 = position_S[total - new :, None]
    seen_BTS = (position_S <= position_T1) & keep_BS[:, None]
    return (seen_BTS | (position_S == position_T1))[:, None]


class SearchRules(LogitsProcessor):
    """Forces the first token, and the end at the greatest length, as fairseq's search does.

    Forced tokens keep their probability, so that it counts in the score of the sentence.

    Args:
        first: the first token of each sentence, [B], or None.
        new_tokens, total_tokens: the greatest length, without and with the prompt; one may be None.
        eos: the symbol that ends a sentence.
    """

    def __init__(
        self, first: Tensor | None, new_tokens: int | None, total_tokens: int | None, eos: int
    ):
        self.first, self.eos = first, eos
        self.new_tokens, self.total_tokens = new_tokens, total_tokens
        self.prompt: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores, -inf but at what is allowed; both are [B x beams, ...]."""
        length = input_ids.size(1)
        self.prompt = length if self.prompt is None else self.prompt
        limit = self.total_tokens
        if self.new_tokens is not None:
            limit = self.prompt + self.new_tokens
        if self.first is not None and length == self.prompt:
            beams = len(scores) // len(self.first)
            return _only(scores, self.first.to(scores.device).repeat_interleave(beams))
        if limit is not None and length == limit - 1:
            return _only(scores, input_ids.new_full((len(scores),), self.eos))
        return scores


def _only(scores: Tensor, token_B: Tensor) -> Tensor:
    kept = scores.gather(1, token_B[:, None])
    return torch.full_like(scores, -math.inf).scatter(1, token_B[:, None], kept)


class ZcodeMoeForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Translates; see `generate` for the target's language token.

    Attention weights and hidden states of layers are not returned.
    """

    config_class = ZcodeMoeConfig
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ("Layer",)

    def __init__(self, config: ZcodeMoeConfig):
        super().__init__(config)
        self.encoder = Encoder(config, "encoder", has_embedding=True)
        self.decoder = Decoder(config)
        if config.selection_bias:
            # It moved in steps of 0.001 in training: half precision would lose them.
            self._keep_in_fp32_modules_strict = {"selection_bias"}
        self.post_init()

    def get_encoder(self, *args: Any, **kwargs: Any) -> nn.Module:
        return self.encoder

    def get_decoder(self, *args: Any, **kwargs: Any) -> nn.Module:
        return self.decoder

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.encoder.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module | None:
        """None where the table is shared: it belongs to the input."""
        return getattr(self.decoder, "output_projection", None)

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Input and output embeddings of the decoder, [V, M]."""
        if self.config.share_all_embeddings:
            return (self.encoder.embed_tokens.weight,) * 2
        table = self.decoder.embed_tokens.weight
        if self.config.share_decoder_input_output_embed:
            return table, table
        return table, self.decoder.output_projection.weight

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits, and the loss where there are labels.

        Args:
            input_ids: int64 [B, S], language token and end included.
            attention_mask: [B, S], 0 at padding; by default, told by its id.
            decoder_input_ids: int64 [B, T]; by default the labels, moved by one place.
            decoder_attention_mask: [B, past + T], 0 at padding.
            encoder_outputs: of an earlier call.
            past_key_values, cache: one cache, under the old name or the new.
            labels: int64 [B, T], -100 or padding where nothing is to be predicted.
            use_cache: whether to return a cache; by default not in training nor with labels.

        Returns:
            `Seq2SeqLMOutput` with logits [B, T, V] and the loss: the mean of the targets' negative
            log-likelihood, in nats.
        """
        padding = self.config.pad_token_id
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask)
        if attention_mask is None and input_ids is not None:
            attention_mask = input_ids != padding
        if decoder_input_ids is None and labels is not None:
            start = labels.new_full((len(labels), 1), self.config.decoder_start_token_id)
            decoder_input_ids = torch.cat([start, labels[:, :-1]], 1)
            decoder_input_ids = decoder_input_ids.masked_fill(decoder_input_ids == -100, padding)
        cache = past_key_values if cache is None else cache
        if use_cache is None:
            use_cache = not self.training and labels is None
        if cache is None and use_cache:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        table_in, table_out = self._tables()
        source = encoder_outputs[0], _look_at(attention_mask)
        keep_BS = None if decoder_attention_mask is None else decoder_attention_mask.bool()
        x_BTM = self.decoder(decoder_input_ids, table_in, source, keep_BS, cache)
        logits = functional.linear(x_BTM, table_out)
        loss = None
        if labels is not None:
            target = labels.masked_fill(labels == padding, -100)
            loss = functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        output = Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            encoder_last_hidden_state=encoder_outputs[0],
            **{_CACHE: cache},
        )
        return output.to_tuple() if return_dict is False else output

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        *,
        forced_bos_token_id: int | list[int] | None = None,
        logits_processor: LogitsProcessorList | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `GenerationMixin.generate`; scores are those of fairseq's search.

        Args:
            inputs: int64 [B, S].
            forced_bos_token_id: the target's language token, for all sentences or for each, of
                models that were trained with one before the target.
            logits_processor: further ones.
        """
        if kwargs.get("max_length") is not None:
            kwargs.setdefault("max_new_tokens", None)  # or the configured number would win
        config = kwargs.get("generation_config") or self.generation_config
        ids = kwargs.get("input_ids") if inputs is None else inputs
        if ids is not None and kwargs.get("attention_mask") is None:
            kwargs["attention_mask"] = ids != self.config.pad_token_id
        first = None
        if forced_bos_token_id is not None:
            first = torch.as_tensor(forced_bos_token_id).reshape(-1)
        rules = SearchRules(
            first,
            kwargs.get("max_new_tokens", config.max_new_tokens),
            kwargs.get("max_length", config.max_length),
            self.config.eos_token_id,
        )
        processors = LogitsProcessorList([*(logits_processor or []), rules])
        return super().generate(inputs, logits_processor=processors, **kwargs)


def _look_at(attention_mask: Tensor | None) -> Tensor | None:
    """bool [B, 1, 1, S]."""
    return None if attention_mask is None else attention_mask.bool()[:, None, None]
