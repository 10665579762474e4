"""Runs a checkpoint over the data of a split, with its references, and watches its experts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from zcode_plugin.checkpoint import config, io
from zcode_plugin.checkpoint.gather import Gathered
from zcode_plugin.checkpoint.statistics import ExpertStatistics
from zcode_plugin.checkpoint.vocabulary import languages_of
from zcode_plugin.data.objectives import KNOWN
from zcode_plugin.errors import UserError
from zcode_plugin.moe.gate import Gate
from zcode_plugin.moe.load import POSITION_STARTS, labelled, load_statistics


@dataclass(frozen=True)
class Selection:
    """On what to run.

    Attributes:
        data: folder of binarised data.
        subset: the split.
        pairs: directions of mt; empty for those of the checkpoint.
        objectives: names; empty for those of the checkpoint.
        max_tokens: of a batch.
        capacity_factor: of the experts; 0 never drops. Which tokens stay is chosen as in training.
        cpu: leave a GPU alone.
    """

    data: Path
    subset: str = "valid"
    pairs: Sequence[str] = ()
    objectives: Sequence[str] = ()
    max_tokens: int = 4000
    capacity_factor: float = 0.0
    cpu: bool = False


def measure(gathered: Gathered, name: str, selection: Selection) -> ExpertStatistics:
    """Statistics of the experts over all sentences of the split, in evaluation.

    Args:
        gathered: a checkpoint for one process.
        name: of the checkpoint.
        selection: on what.

    Raises:
        UserError: the checkpoint has no experts, or the folder no such data.
    """
    if not gathered.experts:
        raise UserError(f"{name} has no experts, of which there could be statistics")
    _check_selection(gathered.state, name, selection)
    with io.well_formed(Path(name)):
        model, task = load_model(gathered, name, selection)
    task.load_dataset(selection.subset)
    use_cuda = torch.cuda.is_available() and not selection.cpu
    if use_cuda:
        model.cuda()
    if selection.capacity_factor > 0:
        _drop_as_in_training(model)
    torch.manual_seed(1)  # electra draws its proposals, and rts the tokens that stay
    with load_statistics() as statistics, torch.no_grad(), _enough_memory(selection):
        for sample in _readable(batches(task, selection), selection.data):
            _pass(model, task, _to_cuda(sample) if use_cuda else sample)
    if not statistics.loads:
        raise UserError(f"--max-tokens {selection.max_tokens}: no sentence fits; give more")
    origin = {
        "checkpoint": name,
        "updates": config.num_updates(gathered.state),
        "data": str(selection.data),
        "subset": selection.subset,
        "capacity_factor": selection.capacity_factor,
        "sentence_positions": POSITION_STARTS,
    }
    return ExpertStatistics(statistics.rows(), origin)


def _check_selection(state: Mapping[str, Any], name: str, selection: Selection) -> None:
    """What is asked of a task of stock, which has its one direction."""
    task = config.section(state, "task")
    if config.get(task, "multitask") is not None:
        return
    named = config.task_name(task)
    if config.get(task, "source_lang") is None or config.get(task, "langs") is not None:
        raise UserError(
            f"{name} is of stock's task {named}, whose batches do not name their directions: there "
            "are statistics of multitask_multilingual and translation"
        )
    for flag, given in (("--pairs", selection.pairs), ("--objectives", selection.objectives)):
        if given:
            raise UserError(
                f"{flag} {','.join(given)}: {name} is of stock's task {named}, with one direction: "
                "leave it out"
            )


@contextmanager
def _enough_memory(selection: Selection) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not io.is_out_of_memory(error):
            raise
        raise UserError(
            f"--max-tokens {selection.max_tokens} takes more memory than there is: give less"
        ) from error


def _readable(samples: Iterable[dict[str, Any]], data: Path) -> Iterator[dict[str, Any]]:
    """The batches; files that are cut off are only seen when they are read."""
    iterator = iter(samples)
    while True:
        try:
            sample = next(iterator)
        except StopIteration:
            return
        except (ValueError, IndexError, EOFError, OSError) as error:
            raise UserError(
                f"{data}: the data cannot be read ({error}): run fairseq-preprocess again"
            ) from error
        yield sample


def load_model(gathered: Gathered, name: str, selection: Selection) -> tuple[Any, Any]:
    """The model in evaluation, and the task of its training with other data."""
    from fairseq import tasks
    from omegaconf import OmegaConf

    from zcode_plugin import register

    register()
    state = gathered.state
    task_options, model_options = (copy(config.section(state, part)) for part in ("task", "model"))
    for option, value in _task_overrides(state, selection).items():
        config.put(task_options, option, value)
    config.put(model_options, "moe_eval_capacity_factor", selection.capacity_factor)
    if isinstance(task_options, dict):
        task_options = OmegaConf.create(task_options)
    task = tasks.setup_task(task_options)
    if state.get("task_state"):
        task.load_state_dict(state["task_state"])
    model = task.build_model(model_options, from_checkpoint=True)
    model.load_state_dict(dict(state["model"]), strict=True, model_cfg=model_options)
    return model.eval(), task


def _task_overrides(state: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    overrides: dict[str, Any] = {"data": str(selection.data)}
    if config.get(config.section(state, "task"), "multitask") is None:
        return overrides  # a task of stock
    overrides |= {"eval_bleu": False, "source_lang": None, "target_lang": None}
    langs = languages_of(state)
    if langs:
        overrides |= {"langs": ",".join(langs), "lang_dict": None}
    if selection.pairs:
        overrides["lang_pairs"] = ",".join(selection.pairs)
    if selection.objectives:
        overrides |= {"multitask": ",".join(selection.objectives), "multitask_max_tokens": ""}
    return overrides


def _drop_as_in_training(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Gate):
            module.options = replace(module.options, eval_rts=True)


def batches(task: Any, selection: Selection) -> Any:
    """All batches of the split, each once."""
    return task.get_batch_iterator(
        dataset=task.dataset(selection.subset),
        max_tokens=selection.max_tokens,
        max_positions=task.max_positions(),
        ignore_invalid_inputs=True,
        data_buffer_size=0,
        disable_iterator_cache=True,
    ).next_epoch_itr(shuffle=False)


def _pass(model: Any, task: Any, sample: dict[str, Any]) -> None:
    plain = {"mt": sample} if "net_input" in sample else sample
    for objective in (name for name in KNOWN if name in plain):
        batch = plain[objective]
        pairs = batch.get("corpora") or f"{task.cfg.source_lang}-{task.cfg.target_lang}"
        with labelled(objective=objective, pairs=pairs):
            model(**batch["net_input"])


def _to_cuda(sample: dict[str, Any]) -> dict[str, Any]:
    from fairseq.utils import move_to_cuda

    return move_to_cuda(sample)
