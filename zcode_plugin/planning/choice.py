"""The forms of parallelism of a model on so many ranks: those that training accepts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from zcode_plugin.checkpoint.slices import check_divides
from zcode_plugin.errors import UserError
from zcode_plugin.models.fully_sharded_checks import check_fully_sharded
from zcode_plugin.models.moe_checks import check_parallel, check_zero_has_ranks
from zcode_plugin.models.moe_config import MoEConfig
from zcode_plugin.models.sliced_checks import check_sliced
from zcode_plugin.planning.forms import Form

_TENSOR = 2


def possible_forms(
    options: argparse.Namespace,
    experts: Sequence[int],
    ranks: int,
    expert_parallel: int | None = None,
    tensor_parallel: int | None = None,
) -> list[Form]:
    """The paper's forms, as far as they differ on so many ranks.

    Args:
        options: of the model.
        experts: the number of experts of each MoE layer.
        ranks: W.
        expert_parallel: P; by default the most that divides.
        tensor_parallel: T of the sliced forms; by default 2, where it divides.

    Raises:
        UserError: P or T is asked for, and training would refuse it.
    """
    size = _parallel_size(expert_parallel, ranks, ranks, experts)
    least = options.min_params_to_wrap
    found = [Form(ranks, size), Form(ranks, size, zero=1)]
    found += [Form(ranks, size, 1, 3, offload, least) for offload in (False, True)]
    slices = _tensor_size(tensor_parallel, ranks, options)
    if slices > 1:
        size = _parallel_size(expert_parallel, ranks, ranks // slices, experts)
        found.append(Form(ranks, size, slices))
        found.append(Form(ranks, size, slices, 3, True, least))
    return found


def refusal(form: Form, precision: str, options: argparse.Namespace) -> str | None:
    """What training would say to a form with this precision and model; None if it accepts.

    Args:
        form: one of `possible_forms`.
        precision: one of `forms.ELEMENTS`.
        options: of the model.
    """
    chosen = {
        "fp16": precision.endswith("fp16"),
        "bf16": precision.endswith("bf16"),
        precision.replace("-", "_"): True,
        "model_parallel_size": form.tensor_parallel,
        "expert_parallel_size": form.expert_parallel,
        "zero_sharding": "os" if form.zero == 1 else "none",
    }
    run = argparse.Namespace(**{**vars(options), **chosen})
    try:
        if form.expert_parallel > 1:
            check_parallel(run)
        if form.zero == 3:
            check_fully_sharded(run, MoEConfig.from_namespace(options))
        if form.tensor_parallel > 1:
            check_sliced(run)
        if form.world == 1:
            check_zero_has_ranks(run)
    except UserError as error:
        return str(error)
    return None


def _parallel_size(wanted: int | None, ranks: int, data_ranks: int, experts: Sequence[int]) -> int:
    """P: what is asked for, in sliced forms as far as it divides their fewer data-parallel ranks.

    Raises:
        UserError: training would refuse it.
    """
    fitting = [
        p
        for p in range(1, data_ranks + 1)
        if data_ranks % p == 0 and all(number % p == 0 for number in experts or (1,))
    ]
    if wanted is None or (wanted not in fitting and data_ranks != ranks):
        return max(fitting)
    if wanted not in fitting:
        numbers = ", ".join(str(number) for number in sorted(set(experts))) or "none"
        raise UserError(
            f"--expert-parallel-size {wanted} must divide --ranks {ranks} and the experts of "
            f"each layer ({numbers}): give one of {', '.join(map(str, fitting))}"
        )
    return wanted


def _tensor_size(wanted: int | None, ranks: int, options: argparse.Namespace) -> int:
    """T of the sliced forms; 1 where nobody asked for them and they do not divide.

    Raises:
        UserError: training would refuse what is asked for.
    """
    size = _TENSOR if wanted is None else wanted
    try:
        if size < 1 or ranks % size:
            raise UserError(f"--model-parallel-size {size} must divide --ranks {ranks}")
        check_divides(options, size)
    except UserError:
        if wanted is None:
            return 1
        raise
    return size
