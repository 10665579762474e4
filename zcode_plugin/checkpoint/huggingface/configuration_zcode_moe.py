"""The options of an encoder-decoder Transformer with Mixture-of-Experts layers."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class ZcodeMoeConfig(PretrainedConfig):
    """Options of `ZcodeMoeForConditionalGeneration`.

    Args:
        vocab_size: V, language tokens and mask included.
        encoder_layers, decoder_layers: numbers of layers.
        encoder_embed_dim, decoder_embed_dim: widths.
        encoder_ffn_dim, decoder_ffn_dim: widths of feed-forward networks and of experts.
        encoder_attention_heads, decoder_attention_heads: heads of each attention.
        encoder_normalize_before, decoder_normalize_before: normalise before each block, not after.
        encoder_final_norm, decoder_final_norm: normalise after the last layer.
        encoder_positions, decoder_positions: `sinusoidal`, `learned` or `none`.
        encoder_experts, decoder_experts: experts of each layer; 0 for a dense one.
        max_source_positions, max_target_positions: longest sequences, in tokens.
        activation_function: `relu`, `gelu`, `gelu_accurate`, `tanh`, `linear` or `relu_squared`.
        scale_embedding: multiply embeddings by the square root of their width.
        layernorm_embedding: normalise the sum of embeddings and positions.
        share_all_embeddings: one table for source, target and output.
        share_decoder_input_output_embed: one table for target and output.
        gate: `learned`, or `hash`: the expert is a fixed function of the token's id.
        gate_sees_token: a learned gate reads 64 signs of the token's id, too.
        experts_per_token: K.
        normalize_gate: a token's combine weights sum to 1.
        selection_bias: experts are chosen by score + bias.
        gate_in_float32: compute the gate in float32 whatever the model's dtype.
        residual_expert: a dense network beside the experts (PR-MoE, arXiv 2201.05596).
        dropout, attention_dropout, activation_dropout: probabilities in training.
    """

    model_type = "zcode_moe"
    # Names that generation and its caches ask for.
    attribute_map = {  # noqa: RUF012
        "num_hidden_layers": "decoder_layers",
        "hidden_size": "decoder_embed_dim",
        "num_attention_heads": "decoder_attention_heads",
    }

    def __init__(
        self,
        vocab_size: int = 32,
        encoder_layers: int = 1,
        decoder_layers: int = 1,
        encoder_embed_dim: int = 16,
        decoder_embed_dim: int = 16,
        encoder_ffn_dim: int = 32,
        decoder_ffn_dim: int = 32,
        encoder_attention_heads: int = 1,
        decoder_attention_heads: int = 1,
        encoder_normalize_before: bool = True,
        decoder_normalize_before: bool = True,
        encoder_final_norm: bool = True,
        decoder_final_norm: bool = True,
        encoder_positions: str = "sinusoidal",
        decoder_positions: str = "sinusoidal",
        encoder_experts: list[int] | None = None,
        decoder_experts: list[int] | None = None,
        max_source_positions: int = 1024,
        max_target_positions: int = 1024,
        activation_function: str = "relu",
        scale_embedding: bool = True,
        layernorm_embedding: bool = False,
        share_all_embeddings: bool = True,
        share_decoder_input_output_embed: bool = True,
        gate: str = "learned",
        gate_sees_token: bool = False,
        experts_per_token: int = 1,
        normalize_gate: bool = False,
        selection_bias: bool = False,
        gate_in_float32: bool = True,
        residual_expert: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        **kwargs: Any,
    ):
        self.vocab_size = vocab_size
        self.encoder_layers, self.decoder_layers = encoder_layers, decoder_layers
        self.encoder_embed_dim, self.decoder_embed_dim = encoder_embed_dim, decoder_embed_dim
        self.encoder_ffn_dim, self.decoder_ffn_dim = encoder_ffn_dim, decoder_ffn_dim
        self.encoder_attention_heads = encoder_attention_heads
        self.decoder_attention_heads = decoder_attention_heads
        self.encoder_normalize_before = encoder_normalize_before
        self.decoder_normalize_before = decoder_normalize_before
        self.encoder_final_norm, self.decoder_final_norm = encoder_final_norm, decoder_final_norm
        self.encoder_positions, self.decoder_positions = encoder_positions, decoder_positions
        self.encoder_experts = encoder_experts or [0] * encoder_layers
        self.decoder_experts = decoder_experts or [0] * decoder_layers
        self.max_source_positions = max_source_positions
        self.max_target_positions = max_target_positions
        self.activation_function = activation_function
        self.scale_embedding = scale_embedding
        self.layernorm_embedding = layernorm_embedding
        self.share_all_embeddings = share_all_embeddings
        self.share_decoder_input_output_embed = share_decoder_input_output_embed
        self.gate, self.normalize_gate = gate, normalize_gate
        self.gate_sees_token = gate_sees_token
        self.experts_per_token = experts_per_token  # `top_k` would be taken for one of sampling
        self.selection_bias, self.gate_in_float32 = selection_bias, gate_in_float32
        self.residual_expert = residual_expert
        self.dropout, self.attention_dropout = dropout, attention_dropout
        self.activation_dropout = activation_dropout
        # The numbers that fairseq's dictionaries give these symbols.
        fixed = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
        fixed["decoder_start_token_id"] = 2
        # Shared tables exist once, under one name: there is nothing to tie after loading.
        kwargs["tie_word_embeddings"] = False
        super().__init__(**{**fixed, "is_encoder_decoder": True, **kwargs})
