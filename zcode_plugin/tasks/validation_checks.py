"""What validation would fail at, after the first epoch, is refused when its data are loaded."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from zcode_plugin.data.multitask_dataset import MultitaskDataset, Stream
from zcode_plugin.data.objectives import KNOWN
from zcode_plugin.errors import UserError
from zcode_plugin.flags import is_given
from zcode_plugin.tasks.long_sentences import without_long


def check_validation(
    dataset: MultitaskDataset,
    options: Any,
    limits: tuple[int, int],
    several: Container[str],
    translated: Sequence[str] | None,
    where: str,
) -> None:
    """Look at a subset that a training is to be validated on.

    Args:
        dataset: of the subset.
        options: of the run.
        limits: the most tokens of a source and of a target.
        several: objectives that may have several corpora, each of which is logged then.
        translated: directions of `--eval-bleu`, None without it.
        where: the data are, for the error.

    Raises:
        UserError: one line with the flag and the remedy.
    """
    if is_given(options, "disable_validation"):
        return
    if not is_given(options, "skip_invalid_size_inputs_valid_test"):
        without_long(dataset, dataset.ordered_indices(), limits, skips=False)
    metric = getattr(options, "best_checkpoint_metric", None)
    if metric is not None:
        logged = _logged_of_corpora(dataset.streams, several, translated)
        _check_best_metric(metric, logged, where)


def _logged_of_corpora(
    streams: Sequence[Stream], several: Container[str], translated: Sequence[str] | None
) -> dict[str, list[str]]:
    """What validation logs of single corpora, and of `--eval-bleu`, by objective.

    Args:
        streams: what it has data of.
        several: objectives that may have several corpora, each of which is logged then.
        translated: directions of `--eval-bleu`, None without it.
    """
    logged = {}
    for stream in streams:
        held = [corpus.name for corpus in stream.corpora]
        each = held if stream.name in several else []
        logged[stream.name] = [f"{stream.name}_nll_loss_{name}" for name in each]
        if stream.name == "mt" and translated is not None:
            scored = [name for name in translated if name in held]
            logged["mt"] += ["bleu", *(f"mt_bleu_{name}" for name in scored)]
    return logged


def _check_best_metric(metric: str, logged: Mapping[str, Sequence[str]], where: str) -> None:
    """Refuse a `--best-checkpoint-metric` that validation will not log: stock fails after it.

    Args:
        metric: its name.
        logged: see `_logged_of_corpora`.
        where: the data are, for the error.

    Raises:
        UserError: nothing is logged under this name.
    """
    start = f"--best-checkpoint-metric {metric}"
    objective = "mt" if metric == "bleu" else metric.partition("_")[0]
    if objective not in KNOWN:
        return
    if objective not in logged:
        raise UserError(
            f"{start}: training or {where} has no {objective}: give it to --multitask and binarise "
            "text for it, or choose another metric"
        )
    is_bleu = metric == "bleu" or metric.startswith("mt_bleu_")
    if metric in logged[objective] or not (is_bleu or metric.startswith(f"{objective}_nll_loss_")):
        return
    others = ", ".join([f"{objective}_nll_loss", *logged[objective]])
    raise UserError(
        f"{start} is not logged of {where}: choose one of {others}"
        + (", or give --eval-bleu" if is_bleu and "bleu" not in logged[objective] else "")
    )
