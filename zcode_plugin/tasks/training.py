"""What stock's trainer calls: updates and validation, with experts that live on several ranks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from fairseq.data import Dictionary
from fairseq.distributed.utils import get_global_group
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask
from fairseq.utils import apply_to_sample
from torch import Tensor

from zcode_plugin.checkpoint.config import put
from zcode_plugin.criterions.multitask_summed_loss import MultitaskSummedLoss
from zcode_plugin.data.multitask_dataset import MultitaskDataset
from zcode_plugin.data.objectives import Objective
from zcode_plugin.data.pairs import Pair
from zcode_plugin.errors import UserError, exits_on_user_error
from zcode_plugin.models.moe_checks import SUMMED_LOSS
from zcode_plugin.moe.experts import Experts
from zcode_plugin.moe.gathering import gather_experts, standing_in
from zcode_plugin.parallel import fully_sharded
from zcode_plugin.parallel.balancing import follow_optimizer
from zcode_plugin.parallel.faults import (
    check_timeout,
    failing_together,
    report_failures,
    set_timeout,
)
from zcode_plugin.parallel.fully_sharded_state import parameter_names
from zcode_plugin.parallel.gradients import patch_optimizer
from zcode_plugin.parallel.normalizers import normalizers, target_counts
from zcode_plugin.parallel.replicas import check_replicas
from zcode_plugin.parallel.tensor import WHOLE, TensorSlicing, tensor_slicing
from zcode_plugin.parallel.topology import ExpertTopology, collective_device
from zcode_plugin.tasks.bleu import BleuEvaluation
from zcode_plugin.tasks.config import MultitaskMultilingualConfig
from zcode_plugin.tasks.log_file import close_repeated_handlers
from zcode_plugin.tasks.long_sentences import without_long
from zcode_plugin.tasks.start import ready_for_start
from zcode_plugin.tasks.start_checks import check_model, check_options

logger = logging.getLogger(__name__)


class TrainingTask(FairseqTask):
    """The part of the task that trains.

    Attributes:
        objectives: what is trained, in the fixed order.
        bleu: translates validation batches; None without `--eval-bleu`.
        direction: of `-s` and `-t`, which a training has not.
        trained_parameters: names, in the order in which the optimizer numbers them.
        options: of the run; None where nothing is trained.
    """

    # What models with experts on several ranks, and loss-free balancing, need of a task.
    trains_experts = True

    cfg: MultitaskMultilingualConfig
    dictionary: Dictionary
    objectives: Sequence[Objective] = ()
    bleu: BleuEvaluation | None = None
    direction: Pair | None = None
    trained_parameters: Sequence[str] = ()
    options: Any = None
    _generator: Any = None
    _gathered: dict[str, Experts] | None = None

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """The model; for training, on as many ranks as its experts are spread over.

        A checkpoint that the training must not start from is refused.
        """
        # Not decorated: stock looks at this very signature before it says `from_checkpoint`.
        return self._build_model(cfg, from_checkpoint)

    @exits_on_user_error
    def _build_model(self, cfg: Any, from_checkpoint: bool) -> Any:
        if dist.is_initialized():
            slicing = tensor_slicing(getattr(cfg, "model_parallel_size", 1))
            groups = [None, get_global_group(), slicing.group, slicing.data_group]
            timeout = self.cfg.distributed_timeout
            if timeout > 0:
                set_timeout(timeout, groups)
            report_failures()
            # A rank that refuses its options ends; no other may still be connecting to it.
            dist.barrier()
            check_timeout(timeout)
        if from_checkpoint:
            # What is to be trained need not be there where the model is only applied.
            cfg = copy(cfg)
            put(cfg, "freeze_except", None)
        else:
            check_options(cfg, [objective.name for objective in self.objectives], self.direction)
        model = super().build_model(cfg, from_checkpoint)
        self.trained_parameters = [
            name for name, parameter in model.named_parameters() if parameter.requires_grad
        ]
        if not from_checkpoint:
            self.options = cfg
            check_model(cfg, model, [objective.name for objective in self.objectives])
            # Of shards the names come with the optimizer, and the loader looks at them.
            trained = () if fully_sharded.is_wanted() else self.trained_parameters
            ready_for_start(cfg, model, self.dictionary.symbols, trained)
        if self.bleu is not None:
            self._generator = super().build_generator(
                [model],
                self.bleu.arguments,
                extra_gen_cls_kwargs={"symbols_to_strip_from_output": self.language_tokens},
            )
        return model

    @exits_on_user_error
    def build_criterion(self, cfg: Any) -> Any:
        """Stock's; one that cannot read joint batches is refused."""
        criterion = super().build_criterion(cfg)
        if not isinstance(criterion, MultitaskSummedLoss):
            raise UserError(
                f"--criterion {cfg._name} cannot read this task's batches, which hold one of each "
                f"objective: give --criterion {SUMMED_LOSS}"
            )
        return criterion

    @exits_on_user_error
    def filter_indices_by_size(
        self,
        indices: np.ndarray,
        dataset: Any,
        max_positions: Any = None,
        ignore_invalid_inputs: bool = False,
    ) -> np.ndarray:
        """Stock's; of joint data it names corpora and rows."""
        if not isinstance(dataset, MultitaskDataset):
            return super().filter_indices_by_size(
                indices, dataset, max_positions, ignore_invalid_inputs
            )
        return without_long(dataset, indices, max_positions, ignore_invalid_inputs)

    @property
    def language_tokens(self) -> set[int]:
        """The numbers of all language tokens."""
        raise NotImplementedError

    def begin_epoch(self, epoch: int, model: Any) -> None:
        """Stock's; each record stands in `--log-file` once, with the time since the start."""
        super().begin_epoch(epoch, model)
        close_repeated_handlers()
        # A run that is resumed within an epoch has its meters from the checkpoint, this one halted.
        wall = metrics.get_meter("default", "wall")
        if wall is not None and wall.start_time is None:
            wall.start()

    @exits_on_user_error
    def train_step(
        self,
        sample: dict[str, Any],
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
    ) -> tuple[Tensor, Any, dict[str, Any]]:
        """Stock's step; every rank weighs its objectives by the token counts of all ranks."""
        self._gathered = None  # the weights are about to change
        topology, slicing = _topology(model), _slicing(model)
        if fully_sharded.is_sharded(model):
            fully_sharded.patch_optimizer(optimizer, topology, slicing)
            self.trained_parameters = parameter_names(model)
        else:
            patch_optimizer(optimizer, topology, slicing)
        ignore_grad = ignore_grad or not any(target_counts(sample).values())
        balancer = getattr(model, "balancer", None)
        if balancer is not None:
            follow_optimizer(balancer, optimizer)
            balancer.counting = not ignore_grad
        with failing_together(f"update {update_num + 1}", _is_shared(model)):
            criterion.update = update_num
            criterion.normalizers = normalizers(
                sample,
                ignore=ignore_grad,
                by_tokens=str(self.cfg.multitask_normalization) == "tokens",
            )
            return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    @exits_on_user_error
    def optimizer_step(self, optimizer: Any, model: Any, update_num: int) -> None:
        """Stock's step, and every `--check-replicas` updates a comparison of all replicas."""
        super().optimizer_step(optimizer, model, update_num)
        interval = self.cfg.check_replicas
        if interval > 0 and (update_num + 1) % interval == 0:
            check_replicas(model, _topology(model), update_num + 1, _slicing(model).size)

    @exits_on_user_error
    def valid_step(
        self, sample: dict[str, Any], model: Any, criterion: Any
    ) -> tuple[Tensor, Any, dict[str, Any]]:
        """Stock's step; with `--eval-bleu` translations, too, each rank by itself."""
        if _is_shared(model):
            sample = self._with_objectives_of_all_ranks(sample)
        with failing_together("validation", _is_shared(model)):
            loss, sample_size, logs = super().valid_step(sample, model, criterion)
            if self.bleu is not None:
                logs.update(self._translate(sample, model))
        return loss, sample_size, logs

    def _with_objectives_of_all_ranks(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Ranks need the same passes, and a validation batch is of one objective."""
        names = [objective.name for objective in self.objectives]
        if len(names) == 1:
            return sample
        device = next(iter(sample.values()))["target"].device
        dataset: MultitaskDataset = next(iter(self.datasets.values()))  # all make the same
        present = torch.tensor([float(name in sample) for name in names])
        present = present.to(collective_device())
        dist.all_reduce(present)
        return {
            name: sample[name]
            if name in sample
            else apply_to_sample(lambda value: value.to(device), dataset.empty_batch(name))
            for name, ranks in zip(names, present.tolist(), strict=True)
            if ranks
        }

    def _translate(self, sample: dict[str, Any], model: Any) -> dict[str, int]:
        assert self.bleu is not None
        if self._gathered is None:
            self._gathered = gather_experts(model)
        batch = self.bleu.select(sample["mt"]) if "mt" in sample else None
        if batch is None:
            return self.bleu.logs([], None, self.language_tokens)
        prefix = batch["target"][:, :1] if self.cfg.decoder_langtok else None
        with standing_in(model, self._gathered):
            hypotheses = super().inference_step(self._generator, [model], batch, prefix)
        return self.bleu.logs(hypotheses, batch, self.language_tokens)

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Stock's metrics; and BLEU, in validation."""
        super().reduce_metrics(logging_outputs, criterion)
        if self.bleu is not None and any(
            "_mt_bleu" in key for log in logging_outputs for key in log
        ):
            self.bleu.reduce(logging_outputs)


def _topology(model: Any) -> ExpertTopology:
    return getattr(model, "topology", ExpertTopology())


def _slicing(model: Any) -> TensorSlicing:
    return getattr(model, "slicing", WHOLE)


def _is_shared(model: Any) -> bool:
    """Whether ranks need each other within a pass."""
    spread = _topology(model).size > 1 or _slicing(model).size > 1
    return spread or fully_sharded.is_sharded(model)
