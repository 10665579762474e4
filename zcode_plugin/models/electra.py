"""ELECTRA (arXiv 2003.10555): a small generator proposes, the encoder finds what is false."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from fairseq.modules import LayerNorm
from fairseq.utils import get_activation_fn
from torch import Tensor, nn

from zcode_plugin.models.layers import LeanEncoderLayer


class Generator(nn.Module):
    """A narrow encoder on the embeddings of the full one; predicts hidden tokens.

    It has as many layers as the encoder, without experts. Embeddings, those of positions too, are
    the encoder's.

    Args:
        encoder: the full one.
        size: share of the encoder's heads and feed-forward width; a head stays as wide as it is.
    """

    def __init__(self, encoder: Any, size: float):
        super().__init__()
        cfg = deepcopy(encoder.cfg)
        side = cfg.encoder
        model_dim, head_dim = side.embed_dim, side.embed_dim // side.attention_heads
        side.attention_heads = max(1, round(size * side.attention_heads))
        side.embed_dim = head_dim * side.attention_heads
        side.ffn_embed_dim = max(1, round(size * side.ffn_embed_dim))
        self.activation = get_activation_fn(cfg.activation_fn)
        self.shrink = nn.Linear(model_dim, side.embed_dim)
        self.layers = nn.ModuleList(LeanEncoderLayer(cfg) for _ in range(side.layers))
        self.layer_norm = LayerNorm(side.embed_dim) if side.normalize_before else nn.Identity()
        self.grow = nn.Linear(side.embed_dim, model_dim)
        self.head_norm = LayerNorm(model_dim)
        self.bias = nn.Parameter(torch.zeros(encoder.embed_tokens.num_embeddings))

    def forward(
        self, encoder: Any, src_tokens: Tensor, padding_BS: Tensor, masked_BS: Tensor
    ) -> Tensor:
        """[N, V], scores of all tokens for the N places where `masked_BS` is True."""
        embedded_BSM, _ = encoder.forward_embedding(src_tokens)
        x_SBG = self.shrink(embedded_BSM).transpose(0, 1)
        for layer in self.layers:
            x_SBG = layer(x_SBG, encoder_padding_mask=padding_BS)
        x_NG = self.layer_norm(x_SBG.transpose(0, 1)[masked_BS])
        x_NM = self.head_norm(self.activation(self.grow(x_NG)))
        if hasattr(encoder.embed_tokens, "scores"):  # this rank has but a slice of the embedding
            return encoder.embed_tokens.scores(x_NM) + self.bias
        return nn.functional.linear(x_NM, encoder.embed_tokens.weight, self.bias)


class Electra(nn.Module):
    """Generator, and the discriminator's head on the encoder.

    Args:
        encoder: of the model, the discriminator's body.
        size: see `Generator`.
    """

    def __init__(self, encoder: Any, size: float):
        super().__init__()
        model_dim = encoder.embed_tokens.embedding_dim
        self.generator = Generator(encoder, size)
        self.activation = self.generator.activation
        self.dense = nn.Linear(model_dim, model_dim)
        self.out = nn.Linear(model_dim, 1)

    def _draws(self, like: Tensor) -> torch.Generator | None:
        """Outside training one that always begins alike: then losses of updates compare."""
        return None if self.training else torch.Generator(like.device).manual_seed(1)

    def forward(
        self, encoder: Any, masked_BS: Tensor, src_tokens: Tensor, src_lengths: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """Scores of the generator for hidden tokens, and what the discriminator says.

        Args:
            encoder: that of the constructor.
            masked_BS: bool [B, S], True at hidden tokens.
            src_tokens: int64 [B, S], hidden tokens masked.
            src_lengths: int64 [B].

        Returns:
            [N, V]; and `proposed`, int64 [N], drawn from these scores, with `false_scores`,
            float [B, S], positive where a token seems false. No gradient passes the draws.
        """
        padding_BS = src_tokens.eq(encoder.padding_idx)
        scores_NV = self.generator(encoder, src_tokens, padding_BS, masked_BS)
        with torch.no_grad():
            # A row that is no number draws anything: the loss says what is wrong, in one line.
            probabilities_NV = scores_NV.float().softmax(1).nan_to_num_(nan=1.0)
            probabilities_NV.clamp_min_(torch.finfo(torch.float32).tiny)  # some symbol is left
            probabilities_NV[:, encoder.padding_idx] = 0  # the encoder would not see it
            proposed_N = torch.multinomial(probabilities_NV, 1, generator=self._draws(scores_NV))
            proposed_N = proposed_N.squeeze(1)
            tokens_BS = src_tokens.clone()
            tokens_BS[masked_BS] = proposed_N
        [features_SBM] = encoder(tokens_BS, src_lengths)["encoder_out"]
        hidden_SBM = self.activation(self.dense(features_SBM))
        false_SB = self.out(hidden_SBM).squeeze(-1)
        return scores_NV, {"proposed": proposed_N, "false_scores": false_SB.t()}
