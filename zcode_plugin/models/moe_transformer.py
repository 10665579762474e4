"""fairseq's Transformer with Mixture-of-Experts layers."""

from __future__ import annotations

import logging
from argparse import ArgumentParser, Namespace
from copy import copy
from typing import Any

import torch
import torch.distributed as dist
from fairseq.data import Dictionary
from fairseq.distributed import fsdp_wrap
from fairseq.models import register_model
from fairseq.models.transformer import (
    TransformerConfig,
    TransformerDecoderBase,
    TransformerEncoderBase,
    TransformerModel,
)
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase
from fairseq.tasks import FairseqTask
from torch import Tensor, nn

from zcode_plugin.checkpoint.config import asks_for_zero_sharding
from zcode_plugin.checkpoint.slices import take_slices
from zcode_plugin.checkpoint.vocabulary import move_rows
from zcode_plugin.errors import exits_on_user_error
from zcode_plugin.models.freezing import freeze
from zcode_plugin.models.heads import GENERATOR_SIZE, add_head_arguments, build_heads, fit_heads
from zcode_plugin.models.layer_experts import layer_experts
from zcode_plugin.models.layers import LeanEncoderLayer, MoEDecoderLayer, MoEEncoderLayer
from zcode_plugin.models.moe_checks import check, check_precision, check_task, left_out
from zcode_plugin.models.moe_config import MoEConfig, add_moe_arguments
from zcode_plugin.models.places import find_places
from zcode_plugin.models.sliced import slice_layer, slice_vocabulary
from zcode_plugin.moe.context import calling, hand_in_context
from zcode_plugin.moe.tape import record_last_output, recording
from zcode_plugin.parallel import fully_sharded
from zcode_plugin.parallel.balancing import LoadBalancer, gates_of
from zcode_plugin.parallel.gradients import hide_experts_from_ddp
from zcode_plugin.parallel.tensor import TensorSlicing
from zcode_plugin.parallel.topology import ExpertTopology
from zcode_plugin.parallel.zero import shard_optimizer_by_experts

logger = logging.getLogger(__name__)


def _finish(layer: nn.Module, cfg: TransformerConfig) -> nn.Module:
    """Slice a layer; then what stock does: activation checkpointing and FSDP, when asked for.

    While the model is being built, `cfg` has this rank's `slicing` and `topology`.
    """
    if cfg.slicing.size > 1:
        slice_layer(layer, cfg.slicing)
    if hasattr(layer, "moe_layer"):
        fully_sharded.wrap_experts(layer.moe_layer, cfg.topology)
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
        layer.register_forward_pre_hook(_with_gradient)
    least = 0 if cfg.checkpoint_activations else cfg.min_params_to_wrap
    return fsdp_wrap(layer, min_num_params=least)


def _with_gradient(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """A layer whose activations are computed anew has gradients only where its input has one."""
    x, *others = inputs
    if not torch.is_grad_enabled() or x.requires_grad:
        return None
    return (x.detach().requires_grad_(), *others)


def _join(layer: nn.Module, name: str) -> nn.Module:
    """Tie an MoE layer to the context and the tape of each pass."""
    hand_in_context(layer, name)
    record_last_output(layer, name)
    return layer


class MoETransformerEncoder(TransformerEncoderBase):
    """Encoder in which every `--moe-freq`-th layer has experts."""

    def __init__(
        self,
        cfg: TransformerConfig,
        dictionary: Dictionary,
        embed_tokens: nn.Embedding,
        moe: MoEConfig,
        topology: ExpertTopology,
    ):
        self._moe, self._topology, self._built = moe, topology, 0
        self._layout = layer_experts(moe, cfg.encoder.layers, cfg.decoder.layers)["encoder"]
        super().__init__(cfg, dictionary, embed_tokens)

    def build_encoder_layer(self, cfg: TransformerConfig) -> nn.Module:
        index, self._built = self._built, self._built + 1
        experts = self._layout.get(index)
        if experts is None:
            return _finish(LeanEncoderLayer(cfg, return_fc=self.return_fc), cfg)
        layer = MoEEncoderLayer(cfg, self._moe, self._topology, experts, self.return_fc)
        return _join(_finish(layer, cfg), f"encoder.layers.{index}")

    def forward(self, src_tokens: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See `fairseq.models.transformer.TransformerEncoderBase.forward`."""
        with calling(token_ids=src_tokens.t()):
            return super().forward(src_tokens, *args, **kwargs)


class MoETransformerDecoder(TransformerDecoderBase):
    """Decoder in which every `--moe-freq`-th layer has experts."""

    def __init__(
        self,
        cfg: TransformerConfig,
        dictionary: Dictionary,
        embed_tokens: nn.Embedding,
        moe: MoEConfig,
        topology: ExpertTopology,
    ):
        self._moe, self._topology, self._built = moe, topology, 0
        self._layout = layer_experts(moe, cfg.encoder.layers, cfg.decoder.layers)["decoder"]
        super().__init__(cfg, dictionary, embed_tokens, no_encoder_attn=cfg.no_cross_attention)

    def build_decoder_layer(self, cfg: TransformerConfig, no_encoder_attn: bool = False) -> Any:
        index, self._built = self._built, self._built + 1
        experts = self._layout.get(index)
        if experts is None:
            return _finish(TransformerDecoderLayerBase(cfg, no_encoder_attn), cfg)
        layer = MoEDecoderLayer(cfg, self._moe, self._topology, experts, no_encoder_attn)
        return _join(_finish(layer, cfg), f"decoder.layers.{index}")

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, Any] | None = None,
        incremental_state: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """See `fairseq.models.transformer.TransformerDecoderBase.forward`."""
        token_ids = prev_output_tokens if incremental_state is None else prev_output_tokens[:, -1:]
        with calling(token_ids=token_ids.t()):
            return super().forward(prev_output_tokens, encoder_out, incremental_state, **kwargs)


@register_model("moe_transformer")
class MoETransformer(TransformerModel):
    """Encoder-decoder Transformer with experts.

    `forward` returns what fairseq's Transformer returns, with one more entry in the dictionary of
    extras: `moe_stats`, which maps the name of each MoE layer to its packed `LayerStats`.

    Attributes:
        moe: the options.
        topology: the place of this rank in expert parallelism.
        slicing: its place in tensor slicing.
        seed: of what all ranks must draw alike.
        heads: of the objectives that have one.
        pretrained_rows: where the next weights that are loaded are of another vocabulary, see
            `rows_for`.
        balancer: moves the selection biases of the gates; None unless `--moe-balance bias`.
        left_out: what the user is told when it trains, see `moe_checks.left_out`.
    """

    moe: MoEConfig
    topology: ExpertTopology
    slicing: TensorSlicing
    seed: int
    heads: nn.ModuleDict
    pretrained_rows: Tensor | None = None
    balancer: LoadBalancer | None = None
    left_out: str | None = None
    _update: int = 0
    _passes: int = 0  # training passes of the update so far

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Flags of the stock Transformer and of `MoEConfig`."""
        super().add_args(parser)
        add_moe_arguments(parser)
        add_head_arguments(parser)

    @classmethod
    @exits_on_user_error
    def build_model(cls, args: Namespace, task: FairseqTask) -> MoETransformer:
        """What stock's commands call, with tasks of stock, too; see `build`."""
        if dist.is_initialized():
            check_task(args, task)
        return cls.build(args, task)

    @classmethod
    def build(cls, args: Namespace, task: FairseqTask) -> MoETransformer:
        """Build the model for this rank.

        Raises:
            UserError: a flag that is out of range or does not fit the world size.
        """
        moe = MoEConfig.from_namespace(args)
        layout = layer_experts(moe, args.encoder_layers, args.decoder_layers)
        check(moe, layout)
        if any(layout.values()):
            check_precision(args)
        slicing, topology = find_places(args, moe, layout)
        fully_sharded.use_sharded_model(topology, slicing)
        args = copy(args)
        # The trainer reads base_layers as "every rank has a file of its own" (see
        # architectures.py); the stock decoder would insert BASE layers.
        args.base_layers = 0
        args.moe, args.topology, args.slicing = moe, topology, slicing
        model = super().build_model(args, task)
        del args.moe, args.topology, args.slicing, model.args
        del model.cfg.moe, model.cfg.topology, model.cfg.slicing
        model.moe, model.topology, model.seed = moe, topology, getattr(args, "seed", 1)
        objectives = [objective.name for objective in getattr(task, "objectives", ())]
        size = getattr(args, "electra_generator_size", None)
        model.heads = build_heads(
            objectives, model.encoder, GENERATOR_SIZE if size is None else size
        )
        if slicing.size > 1:
            slice_vocabulary(model)
        model.slicing = slicing
        if moe.freeze_except is not None:
            freeze(model, moe.freeze_except)
        if topology.size > 1:
            hide_experts_from_ddp(model)
            if asks_for_zero_sharding(args):
                shard_optimizer_by_experts(topology)
        if moe.balance == "bias":
            model.balancer = LoadBalancer(gates_of(model), moe.moe_bias_update_rate)
        if any(layout.values()):
            model.left_out = left_out(args, task, moe)
        return model

    @classmethod
    def build_encoder(
        cls, cfg: TransformerConfig, src_dict: Dictionary, embed_tokens: nn.Embedding
    ) -> MoETransformerEncoder:
        return MoETransformerEncoder(cfg, src_dict, embed_tokens, cfg.moe, cfg.topology)

    @classmethod
    def build_decoder(
        cls, cfg: TransformerConfig, tgt_dict: Dictionary, embed_tokens: nn.Embedding
    ) -> MoETransformerDecoder:
        return MoETransformerDecoder(cfg, tgt_dict, embed_tokens, cfg.moe, cfg.topology)

    def set_num_updates(self, num_updates: int) -> None:
        """Called before every training batch with the number of updates so far."""
        super().set_num_updates(num_updates)
        if num_updates != self._update:
            self._update, self._passes = num_updates, 0

    def forward(
        self,
        *args: Any,
        objective: str = "mt",
        masked_tokens: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """See `fairseq.models.transformer.TransformerModel.forward`.

        With `masked_tokens`, bool [B, S], only the encoder runs, and the output is [N, V] for the
        N places where it is True; of `electra` see `Electra` for the extras.
        """
        if self.training and self.left_out is not None:
            logger.warning(self.left_out)
            self.left_out = None
        with recording() as tape, calling(key=(self.seed, self._update, self._passes)):
            if masked_tokens is None:
                output, extra = super().forward(*args, **kwargs)
            else:
                output, extra = self._predict_masked(objective, masked_tokens, *args, **kwargs)
        self._passes += self.training
        if self.training and self.balancer is not None:
            self.balancer.observe(tape)
        extra["moe_stats"] = tape
        return output, extra

    def _predict_masked(
        self, objective: str, masked_tokens: Tensor, src_tokens: Tensor, src_lengths: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        head = self.heads[objective]
        if objective == "electra":
            output, extra = head(self.encoder, masked_tokens, src_tokens, src_lengths)
            return output, extra
        [features_SBM] = self.encoder(src_tokens, src_lengths)["encoder_out"]
        return head(features_SBM.transpose(0, 1), masked_tokens), {}

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Stock's; and rows are those of this vocabulary, heads those of these objectives."""
        super().upgrade_state_dict_named(state_dict, name)
        if self.pretrained_rows is not None:
            move_rows(state_dict, self.state_dict(), self.pretrained_rows)
            self.pretrained_rows = None  # what is loaded later is of this run
        if self.slicing.size > 1:
            take_slices(state_dict, self.state_dict(), self.slicing)
        fit_heads(state_dict, self)
