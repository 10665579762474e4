"""One objective's pass through the model: its summed losses, and what is logged of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fairseq import metrics
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from zcode_plugin.data.objectives import MASKED
from zcode_plugin.models.sliced import sliced_projection

# Further sums of single objectives: right tokens, those of mt and dae in validation alone; of
# electra's discriminator its loss, the places where it is right, and the false tokens.
FURTHER_SUMS: Mapping[str, tuple[str, ...]] = {
    "mlm": ("correct",),
    "electra": ("correct", "false_loss", "false_correct", "false"),
}


@dataclass(frozen=True)
class ObjectivePass:
    """Sums over the targets of a batch.

    Attributes:
        loss: to be minimised, label smoothing included.
        nll_loss: without it.
        layers: packed `LayerStats` of the MoE layers.
        further: `FURTHER_SUMS` of the objective; and `corpus_sums` where they are asked for.
    """

    loss: Tensor
    nll_loss: Tensor
    layers: list[Tensor]
    further: dict[str, Tensor]


def run_objective(
    model: Any,
    objective: str,
    batch: dict[str, Any],
    *,
    label_smoothing: float,
    padding: int,
    corpora: Sequence[str] = (),
) -> ObjectivePass:
    """Run one objective's batch through the model; only mt and dae have label smoothing.

    Args:
        model: see `MultitaskSummedLoss.forward`.
        objective: its name.
        batch: of it, as `Collater` makes it.
        label_smoothing: epsilon.
        padding: the target that is none.
        corpora: names of those whose loss is wanted apart.
    """
    projection = sliced_projection(model) if model.training else None
    if projection is not None and objective not in MASKED:
        with projection.keeping():
            output = model(**batch["net_input"])
        target = model.get_targets(batch, output)
        losses = projection.loss(output[0], target, label_smoothing, padding)
        return ObjectivePass(*losses, _moe_stats(output), {})
    output = model(**batch["net_input"])
    is_masked = objective in MASKED
    if is_masked:  # scores of a head, whatever softmax the decoder has
        lprobs = output[0].log_softmax(-1, dtype=torch.float32)
    else:
        lprobs = model.get_normalized_probs(output, log_probs=True)
    lprobs = lprobs.view(-1, lprobs.size(-1))
    target = model.get_targets(batch, output).view(-1)
    loss, nll_loss = label_smoothed_nll_loss(
        lprobs, target, 0.0 if is_masked else label_smoothing, ignore_index=padding
    )
    further = {}
    if is_masked or not model.training:
        further["correct"] = ((lprobs.argmax(1) == target) & target.ne(padding)).sum()
    if objective == "electra":
        further.update(_discriminate(batch, output[1], padding))
    if corpora and batch["ntokens"]:
        further.update(_by_corpus(batch, lprobs, target, padding, corpora))
    return ObjectivePass(loss, nll_loss, _moe_stats(output), further)


def _moe_stats(output: Any) -> list[Tensor]:
    """What MoE layers packed; some of stock's models return nothing beside their scores."""
    return [*((output[1] or {}).get("moe_stats", {})).values()]


def _discriminate(batch: dict[str, Any], extra: dict[str, Any], padding: int) -> dict[str, Tensor]:
    """Sums of the discriminator, over all tokens but padding.

    A token is false where the proposal is not the token that was hidden there.
    """
    tokens_BS, masked_BS = batch["net_input"]["src_tokens"], batch["net_input"]["masked_tokens"]
    false_BS = torch.zeros_like(masked_BS)
    false_BS[masked_BS] = extra["proposed"] != batch["target"]
    is_token_BS = tokens_BS.ne(padding)
    scores, is_false = extra["false_scores"][is_token_BS].float(), false_BS[is_token_BS]
    return {
        "false_loss": binary_cross_entropy_with_logits(scores, is_false.float(), reduction="sum"),
        "false_correct": ((scores > 0) == is_false).sum(),
        "false": is_false.sum(),
    }


def corpus_sums(corpora: Sequence[str]) -> list[str]:
    """Names of the sums of single corpora: of the loss, and of the targets."""
    return [f"{kind}_{corpus}" for corpus in corpora for kind in ("nll", "targets")]


def _by_corpus(
    batch: dict[str, Any], lprobs: Tensor, target: Tensor, padding: int, corpora: Sequence[str]
) -> dict[str, Tensor]:
    """The sums of `corpus_sums` over [N, V] log-probabilities of N targets."""
    masked = batch["net_input"].get("masked_tokens")
    if masked is None:
        rows = len(batch["corpora"])
        sentence_N = torch.arange(rows, device=target.device).repeat_interleave(len(target) // rows)
    else:
        sentence_N = masked.nonzero()[:, 0]
    numbers = {corpus: number for number, corpus in enumerate(corpora)}
    corpus_B = torch.tensor([numbers[name] for name in batch["corpora"]], device=target.device)
    corpus_N = corpus_B[sentence_N]
    is_target_N = target.ne(padding)
    nll_N = -lprobs.gather(1, target.unsqueeze(1)).squeeze(1) * is_target_N
    zero_C = torch.zeros(len(corpora), device=target.device)
    nll_C = zero_C.index_add(0, corpus_N, nll_N.float())
    targets_C = zero_C.index_add(0, corpus_N, is_target_N.float())
    sums = torch.stack((nll_C, targets_C), dim=1).view(-1)
    return dict(zip(corpus_sums(corpora), sums.unbind(), strict=True))


def log_means(name: str, sums: Mapping[str, float]) -> None:
    """Log the means of an objective, in bits and percent; nothing of one without targets."""
    tokens = sums[f"{name}_ntokens"]
    if not tokens:
        return
    bits = {kind: sums[f"{name}_{kind}"] / tokens / math.log(2) for kind in ("loss", "nll_loss")}
    if name == "electra":
        places = sums[f"{name}_nplaces"]
        false_bits = sums[f"{name}_false_loss"] / places / math.log(2)
        bits["loss"] += sums[f"{name}_false_weight"] / places * false_bits
        metrics.log_scalar(f"{name}_false_loss", false_bits, places, round=3)
        for kind, label in (("false_correct", "false_accuracy"), ("false", "false_share")):
            share = 100 * sums[f"{name}_{kind}"] / places
            metrics.log_scalar(f"{name}_{label}", share, places, round=2)
    for kind, value in bits.items():
        metrics.log_scalar(f"{name}_{kind}", value, tokens, round=3)
    if f"{name}_correct" in sums:
        share = 100 * sums[f"{name}_correct"] / tokens
        metrics.log_scalar(f"{name}_accuracy", share, tokens, round=2)
    prefix = f"{name}_targets_"
    for corpus in [key.removeprefix(prefix) for key in sums if key.startswith(prefix)]:
        targets = sums[prefix + corpus]
        if targets:
            value = sums[f"{name}_nll_{corpus}"] / targets / math.log(2)
            metrics.log_scalar(f"{name}_nll_loss_{corpus}", value, targets, round=3)
    metrics.log_scalar(f"_{name}_weight", sums[f"{name}_weight"] / tokens, tokens)
