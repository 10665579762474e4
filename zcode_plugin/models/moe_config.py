"""The options of Mixture-of-Experts models.

Names are those of fairseq's own MoE branch where it has one.
"""

# No postponed annotations: fairseq builds its parser from the types of the fields.
from argparse import ArgumentParser
from dataclasses import dataclass, field
from typing import Any, Optional, cast

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass

from zcode_plugin.checkpoint.config import FLOAT_BITS
from zcode_plugin.errors import UserError
from zcode_plugin.moe.gate import GateOptions, SecondExpertPolicy
from zcode_plugin.moe.gating_dropout import GatingDropout, GatingDropoutPolicy
from zcode_plugin.moe.routing import TokenPriority

# fairseq's parser makes of a bool with default True a flag that can only switch off; these can be
# given bare, as in fairseq's MoE branch, or with a value.
_Switch = ChoiceEnum(["true", "false"])
_AutoSwitch = ChoiceEnum(["auto", "true", "false"])
_Priority = ChoiceEnum(["rts", "position", "gate"])
_Gate = ChoiceEnum(["learned", "random", "hash"])
_SecondExpert = ChoiceEnum(["score", "sampling"])
_Balance = ChoiceEnum(["loss", "bias", "none"])
_GatingDropout = ChoiceEnum(["local", "skip"])


def _flag(default: Any, help_text: str, const: Optional[str] = None) -> Any:
    """An option; the parser knows no defaults (see `add_moe_arguments`), so its help names them."""
    if default is not None and default is not False and "default" not in help_text:
        help_text = f"{help_text} (default: {default})"
    metadata = (
        {"help": help_text} if const is None else {"help": help_text, "argparse_const": const}
    )
    return field(default=default, metadata=metadata)


@dataclass
class MoEConfig(FairseqDataclass):
    """Flags of the model `moe_transformer`, beside those of fairseq's Transformer."""

    moe_freq: int = _flag(
        2,
        "every N-th layer is an MoE layer; 0 means none (dense)",
    )
    encoder_moe_freq: Optional[int] = _flag(
        None,
        "the same for the encoder alone (default: --moe-freq)",
    )
    decoder_moe_freq: Optional[int] = _flag(
        None,
        "the same for the decoder alone (default: --moe-freq)",
    )
    moe_expert_count: str = _flag(
        "8",
        "experts of each MoE layer, over all ranks; or one number for each MoE layer, encoder"
        ' first, such as "32,64"',
    )
    encoder_moe_expert_count: Optional[str] = _flag(
        None,
        "the same for the encoder alone (default: --moe-expert-count)",
    )
    decoder_moe_expert_count: Optional[str] = _flag(
        None,
        "the same for the decoder alone (default: --moe-expert-count)",
    )
    moe_top_k: int = _flag(
        1,
        "experts that each token is sent to",
    )
    moe_gate: _Gate = _flag(  # type: ignore[valid-type]
        "learned",
        "what chooses experts: a learned gate; or, as baselines, draws that are new in every "
        "training pass (random), or a fixed hash of the token (hash; random uses it in "
        "validation and translation)",
    )
    moe_gate_sees_token: bool = _flag(
        False,
        "the learned gate reads which token it is, too, as 64 fixed random signs of its id beside "
        "the layer's input: experts keep their tokens from the first updates on",
    )
    moe_second_expert_policy: _SecondExpert = _flag(  # type: ignore[valid-type]
        "score",
        "the experts of a token after its first: those with the next best scores, or drawn in"
        " training from the gate's distribution over the others (sampling)",
    )
    moe_balance: _Balance = _flag(  # type: ignore[valid-type]
        "loss",
        "what keeps the experts equally busy: a loss (weight --moe-gate-loss-wt), a bias of "
        "each expert that steers the choice alone and follows the load (loss-free), or "
        "nothing (none)",
    )
    moe_bias_update_rate: float = _flag(
        0.001,
        "step of that bias in each update; scores lie between 0 and 1",
    )
    moe_capacity_factor: float = _flag(
        1.0,
        "in training an expert accepts FACTOR x top-k x tokens / experts tokens of a rank's "
        "batch, the others skip the layer; 0 never drops",
    )
    moe_eval_capacity_factor: float = _flag(
        0.0,
        "the same in validation and translation; with the default 0, never drop, a "
        "translation does not depend on its batch",
    )
    moe_min_capacity: int = _flag(
        4,
        "least number of tokens that an expert accepts",
    )
    moe_token_priority: _Priority = _flag(  # type: ignore[valid-type]
        "rts",
        "which tokens stay when an expert is full: random ones (rts), the first of the batch "
        "(position), or those with the best gate score (gate)",
    )
    moe_batch_prioritized_routing: bool = _flag(
        False,
        "the same as --moe-token-priority gate",
    )
    moe_jitter_eps: float = _flag(
        0.0,
        "multiply the gate's input by U(1-EPS, 1+EPS) in training (default of all "
        "architectures: 0.01, as in the paper)",
    )
    moe_eom: float = _flag(
        0.0,
        "expert output masking: in training a token loses the output of each of its experts "
        "with this probability, the others are scaled by 1/(1-P); NLLB: 0.2",
    )
    moe_gating_dropout: float = _flag(
        0.0,
        "share of a layer's training passes in which the gate is ignored and no token leaves "
        "its rank",
    )
    moe_gating_dropout_policy: _GatingDropout = _flag(  # type: ignore[valid-type]
        "local",
        "where tokens go then: in equal shares, at random, to the experts of their rank "
        "(local), or to none (skip)",
    )
    moe_residual: bool = _flag(
        False,
        "a dense feed-forward network beside the experts of each MoE layer, mixed with their "
        "output by learned coefficients (PR-MoE)",
    )
    moe_gating_use_fp32: _Switch = _flag(  # type: ignore[valid-type]
        "true",
        "compute the gate in float32 whatever the model's dtype",
        const="true",
    )
    moe_normalize_gate_prob: _AutoSwitch = _flag(  # type: ignore[valid-type]
        "auto",
        "make a token's combine weights sum to 1; auto: when top-k > 1",
        const="true",
    )
    moe_normalize_gate_prob_before_dropping: bool = _flag(
        False,
        "take that sum over all choices of a token, dropped ones included",
    )
    use_moe_pad_mask: _Switch = _flag(  # type: ignore[valid-type]
        "true",
        "keep padding out of routing, capacity and losses",
        const="true",
    )
    freeze_except: Optional[str] = _flag(
        None,
        "train nothing but parameters with one of these comma-separated words in their name, such "
        "as gate, experts, embed_tokens; start with --finetune-from-model (default: train all)",
    )
    expert_parallel_size: int = _flag(
        1,
        "ranks over which the experts of a layer are spread; divides the number of ranks and "
        "of experts",
    )
    moe_expert_bits: int = _flag(
        FLOAT_BITS,
        "bits of an expert's weight: 8 or 4, which zcode quantise writes into a checkpoint, to "
        "translate with; 32 means floats of the model's dtype",
    )

    @property
    def gate(self) -> GateOptions:
        """What the gate needs of these options.

        Raises:
            UserError: a value that is out of range, or two that contradict.
        """
        priority = str(self.moe_token_priority)
        if self.moe_batch_prioritized_routing:
            if priority == "position":
                raise UserError(
                    "--moe-batch-prioritized-routing contradicts --moe-token-priority position: "
                    "drop one of them"
                )
            priority = "gate"
        normalize = str(self.moe_normalize_gate_prob).lower()
        return GateOptions(
            k=self.moe_top_k,
            capacity_factor=self.moe_capacity_factor,
            eval_capacity_factor=self.moe_eval_capacity_factor,
            min_capacity=self.moe_min_capacity,
            token_priority=cast(TokenPriority, priority),
            second_expert_policy=cast(SecondExpertPolicy, str(self.moe_second_expert_policy)),
            selection_bias=self.balance == "bias",
            sees_token=self.moe_gate_sees_token,
            output_masking=self.moe_eom,
            jitter_eps=self.moe_jitter_eps,
            normalize=None if normalize == "auto" else normalize == "true",
            normalize_before_dropping=self.moe_normalize_gate_prob_before_dropping,
            fp32=str(self.moe_gating_use_fp32).lower() == "true",
        )

    @property
    def gate_is_learned(self) -> bool:
        """Whether the gate has weights."""
        return str(self.moe_gate) == "learned"

    @property
    def gate_knows_tokens(self) -> bool:
        """Whether experts are chosen by the numbers of tokens, alone or among other things."""
        return not self.gate_is_learned or self.moe_gate_sees_token

    @property
    def gating_dropout(self) -> GatingDropout:
        """How often the gate is ignored, and what instead."""
        policy = cast(GatingDropoutPolicy, str(self.moe_gating_dropout_policy))
        return GatingDropout(self.moe_gating_dropout, policy)

    @property
    def balance(self) -> str:
        """`loss`, `bias` or `none`."""
        return str(self.moe_balance)

    @property
    def masks_padding(self) -> bool:
        return str(self.use_moe_pad_mask).lower() == "true"

    def is_moe_layer(self, side: str, index: int) -> bool:
        """Whether layer `index` of `side` (`encoder` or `decoder`) has experts."""
        own = getattr(self, f"{side}_moe_freq")
        freq = self.moe_freq if own is None else own
        return freq > 0 and (index + 1) % freq == 0


def add_moe_arguments(parser: ArgumentParser) -> None:
    """Declare a flag for each option; defaults come from the architecture."""
    gen_parser_from_dataclass(parser, MoEConfig(), delete_default=True)
