"""The fairseq criterion `multitask_summed_loss`."""

# No postponed annotations: fairseq builds its parser from the types of the fields.
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq import metrics, utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import FairseqTask
from torch import Tensor

from zcode_plugin.criterions.objective_pass import (
    FURTHER_SUMS,
    ObjectivePass,
    corpus_sums,
    log_means,
    run_objective,
)
from zcode_plugin.data.objectives import Objective
from zcode_plugin.moe.load import labelled
from zcode_plugin.moe.stats import LOG_SUMS, LayerStats, log_values, reduce_log

# What is logged of the experts for each objective, too; the rest would only lengthen the lines.
_PER_OBJECTIVE = ("moe_gate_loss", "overflow_expert1", "entropy_gating", "expert1_balance_top")


@dataclass
class MultitaskSummedLossConfig(FairseqDataclass):
    """Flags of the criterion."""

    label_smoothing: float = field(
        default=0.0, metadata={"help": "epsilon of label smoothing, of mt and dae; 0 for none"}
    )
    moe_gate_loss_wt: float = field(
        default=0.01,
        metadata={
            "help": "weight of the load balance loss, which is 1 for a balanced layer; used with "
            "--moe-balance loss alone"
        },
    )
    moe_z_loss_wt: float = field(
        default=0.0,
        metadata={"help": "weight of the router z-loss; ST-MoE uses 0.001"},
    )
    electra_discriminator_wt: float = field(
        default=1.0,
        metadata={
            "help": "weight of the discriminator's loss in electra's, beside 1 of the generator's; "
            "ELECTRA alone was trained with 50, which is too much beside translation"
        },
    )


@register_criterion("multitask_summed_loss", dataclass=MultitaskSummedLossConfig)
class MultitaskSummedLoss(FairseqCriterion):
    """Sum over objectives of weight x mean loss per target, plus the losses of the gates.

    The mean of an objective is over the targets of all ranks; that of electra is the generator's
    mean over hidden tokens plus `--electra-discriminator-wt` times the discriminator's mean over
    all tokens. Gate losses are means over layers and, over ranks and micro-batches, means weighted
    by the targets of the first objective; those of all objectives' passes are added.

    In the logs, in bits per target: `loss` (the weighted sum, without gate losses), `nll_loss` and
    `ppl` of the first objective, `OBJECTIVE_loss` and `OBJECTIVE_nll_loss` of each. In percent:
    `mlm_accuracy` and `electra_accuracy`, hidden tokens that are predicted; in validation
    `mt_accuracy` and `dae_accuracy`, targets that are predicted with teacher forcing. Of electra's
    discriminator: `electra_false_loss`, `electra_false_accuracy` and `electra_false_share`, the
    percentage of false tokens; always to say "true" is right in 100 minus that.
    In validation `OBJECTIVE_nll_loss_CORPUS` is that of each direction or language.
    The metrics of the experts are those of all objectives' passes; with several objectives
    `OBJECTIVE_moe_gate_loss` and some more are those of its own passes.

    Attributes:
        normalizers: factor of each objective's summed loss, see `parallel.normalizers`; the task
            sets it for each training batch.
        update: updates so far, where a weight changes; the task sets it, too. None in
            fairseq-validate, which takes the weights that training ends with.
    """

    def __init__(
        self,
        task: FairseqTask,
        label_smoothing: float = 0.0,
        moe_gate_loss_wt: float = 0.01,
        moe_z_loss_wt: float = 0.0,
        electra_discriminator_wt: float = 1.0,
    ):
        super().__init__(task)
        self.eps = label_smoothing
        self.gate_loss_wt = moe_gate_loss_wt
        self.z_loss_wt = moe_z_loss_wt
        self.discriminator_wt = electra_discriminator_wt
        self.objectives = getattr(task, "objectives", (Objective("mt", 1.0),))
        self.corpora = getattr(task, "corpora", {})
        self.normalizers: dict[str, float | Tensor] = {}
        self.update: int | None = None

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, Any, dict[str, Any]]:
        """Loss to be divided by the sample size, the sample size, and what is logged.

        Args:
            model: returns (output, extra), `moe_stats` among the extras where it has experts.
            sample: a batch for each objective by name, or one plain translation batch.
        """
        batches = {"mt": sample} if "net_input" in sample else sample
        device = next(iter(batches.values()))["target"].device
        further = {
            item.name: self._further_sums(item.name, model.training) for item in self.objectives
        }
        logs: dict[str, Any] = _empty_log(self.objectives, device, further)
        losses: list[Tensor] = []
        stats: dict[str, list[Tensor]] = {}
        for objective in self.objectives:
            # The last ones in validation, whose losses could not be compared otherwise.
            weight = objective.weight_at(self.update if model.training else None)
            if objective.name not in batches or (weight == 0 and model.training):
                continue
            batch = batches[objective.name]
            own = self._run(model, objective.name, batch)
            losses.append(weight * self._loss(objective.name, own))
            stats[objective.name] = own.layers
            self._log_objective(logs, objective.name, batch, own, weight)
        sample_size = next(
            batches[item.name]["ntokens"] for item in self.objectives if item.name in batches
        )
        has_balance_loss = getattr(getattr(model, "moe", None), "balance", "loss") == "loss"
        gate_losses = self._gate_losses(
            [*stats.values()], self.gate_loss_wt if has_balance_loss else 0.0
        )
        total = torch.stack(losses).sum() + sample_size * gate_losses
        self._log_experts(logs, stats)
        logs["sample_size"] = sample_size
        return total, sample_size, logs

    def _run(self, model: Any, name: str, batch: dict[str, Any]) -> ObjectivePass:
        wants_corpora = "corpora" in batch and not model.training
        with labelled(objective=name):
            return run_objective(
                model,
                name,
                batch,
                label_smoothing=self.eps,
                padding=self.padding_idx,
                corpora=self.corpora.get(name, ()) if wants_corpora else (),
            )

    def _further_sums(self, objective: str, training: bool) -> Sequence[str]:
        further = FURTHER_SUMS.get(objective, ())
        if training:
            return further
        return [
            *dict.fromkeys(["correct", *further]),
            *corpus_sums(self.corpora.get(objective, ())),
        ]

    def _loss(self, name: str, own: ObjectivePass) -> Tensor:
        loss = self.normalizers.get(name, 1.0) * own.loss
        if name == "electra":
            factor = self.discriminator_wt * self.normalizers.get(f"{name}.false", 1.0)
            loss = loss + factor * own.further["false_loss"]
        return loss

    def _log_objective(
        self,
        logs: dict[str, Any],
        name: str,
        batch: dict[str, Any],
        own: ObjectivePass,
        weight: float,
    ) -> None:
        logs[f"{name}_loss"] = own.loss.detach()
        logs[f"{name}_nll_loss"] = own.nll_loss.detach()
        for kind, value in own.further.items():
            logs[f"{name}_{kind}"] = value.detach() * bool(batch["ntokens"])
        logs[f"{name}_ntokens"] = batch["ntokens"]
        logs[f"{name}_weight"] = weight * batch["ntokens"]
        if name == "electra":
            logs["electra_nplaces"] = batch["nplaces"]
            logs["electra_false_weight"] = self.discriminator_wt * batch["nplaces"]
        logs["ntokens"] += batch["ntokens"]
        logs["nsentences"] += batch["nsentences"]

    def _log_experts(self, logs: dict[str, Any], stats: dict[str, list[Tensor]]) -> None:
        """Sums over layers, of all passes; with several objectives of each one's, too."""
        for name, layers in stats.items():
            counts = bool(logs[f"{name}_ntokens"])  # what stands in for no batch counts nothing
            for key, value in log_values(layers).items():
                logs[key] = logs[key] + value * counts
                if len(self.objectives) > 1:
                    logs[f"{name}_{key}"] = value * counts

    def _gate_losses(self, passes: list[list[Tensor]], balance_wt: float) -> Tensor:
        """Weighted balance and z-loss: mean over the layers of a pass, sum over passes."""
        total = torch.zeros(())
        for layers in passes:
            for vector in layers:
                stats = LayerStats.unpack(vector)
                loss = balance_wt * stats.balance_loss + self.z_loss_wt * stats.z_loss
                total = total + loss / len(layers)  # a number on the CPU joins without a copy
        return total

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log means over all ranks and micro-batches."""
        sums = {
            key: sum(utils.item(log.get(key, 0)) for log in logging_outputs)
            for key in {key for log in logging_outputs for key in log}
        }
        names = [key[: -len("_nll_loss")] for key in sums if key.endswith("_nll_loss")]
        names = sorted(names, key=lambda name: sums[f"{name}_place"])
        for name in names:
            log_means(name, sums)
        metrics.log_derived("loss", lambda meters: _weighted_sum(meters, names), priority=0)
        metrics.log_derived("nll_loss", lambda meters: _first(meters, names), priority=1)
        metrics.log_derived(
            "ppl", lambda meters: utils.get_perplexity(_first(meters, names)), priority=2
        )
        for prefix in ("", *(f"{name}_" for name in names)):
            tokens = sums.get(f"{prefix}moe_layer_tokens", 0)
            if tokens:
                parts = {key: sums.get(f"{prefix}{key}", 0) for key in LOG_SUMS}
                for name, value in reduce_log(parts).items():
                    if not prefix or name in _PER_OBJECTIVE:
                        metrics.log_scalar(f"{prefix}{name}", value, tokens, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """True: all ranks log the same keys, and all values are sums."""
        return True


def _empty_log(
    objectives: tuple[Objective, ...],
    device: torch.device | None,
    further: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """Every key that any rank may log: ranks add up their logs key by key.

    On the device are those of every rank or of none; stock adds those apart from the others.
    """
    zero = torch.zeros((), device=device)
    logs: dict[str, Any] = {"ntokens": 0, "nsentences": 0, **dict.fromkeys(LOG_SUMS, zero)}
    for place, objective in enumerate(objectives):
        name = objective.name
        for kind in ("loss", "nll_loss", *further.get(name, ())):
            logs[f"{name}_{kind}"] = zero
        places = ("nplaces", "false_weight") if name == "electra" else ()
        for kind in ("ntokens", "weight", *places):
            logs[f"{name}_{kind}"] = 0
        logs[f"{name}_place"] = place
        if len(objectives) > 1:
            logs.update((f"{name}_{key}", zero) for key in LOG_SUMS)
    return logs


def _weighted_sum(meters: Any, names: list[str]) -> float:
    present = _logged(meters, names)
    total = sum(meters[f"_{name}_weight"].avg * meters[f"{name}_loss"].avg for name in present)
    return round(float(total), 3) if present else float("nan")


def _first(meters: Any, names: list[str]) -> float:
    present = _logged(meters, names)
    return float(meters[f"{present[0]}_nll_loss"].avg) if present else float("nan")


def _logged(meters: Any, names: list[str]) -> list[str]:
    """Objectives with a mean since meters were reset, which keeps meters but empties them.

    One whose weight has fallen to 0 has none, nor has any where every update overflowed.
    """
    meter_of = {name: meters.get(f"{name}_loss") for name in names}
    return [name for name, meter in meter_of.items() if meter is not None and meter.avg is not None]
