"""Refuses values of MoE flags that cannot work, alone or together."""

from __future__ import annotations

from zcode_plugin.errors import UserError
from zcode_plugin.models.moe_config import MoEConfig

_LEAST = {"moe_expert_count": 1, "moe_top_k": 1, "expert_parallel_size": 1}


def check(moe: MoEConfig) -> None:
    """Refuse what cannot work, naming the flag.

    Raises:
        UserError: one line with the flag, its value and the remedy.
    """
    _check_ranges(moe)
    _check_choices(moe)


def _check_ranges(moe: MoEConfig) -> None:
    for name in moe.__dataclass_fields__:
        value = getattr(moe, name)
        bound = _LEAST.get(name, 0)
        if isinstance(value, (int, float)) and value < bound:
            raise UserError(f"{_flag(name)} {value} is too small: give at least {bound}")
    if moe.moe_jitter_eps >= 1:
        raise UserError(f"--moe-jitter-eps {moe.moe_jitter_eps} must be less than 1")
    if moe.moe_top_k > moe.moe_expert_count:
        raise UserError(
            f"--moe-top-k {moe.moe_top_k} is more than --moe-expert-count "
            f"{moe.moe_expert_count}: give at most as many"
        )


def _check_choices(moe: MoEConfig) -> None:
    if str(moe.moe_second_expert_policy) == "sampling":
        if moe.moe_top_k < 2:
            raise UserError(
                f"--moe-second-expert-policy sampling needs a second expert, but --moe-top-k is "
                f"{moe.moe_top_k}: give --moe-top-k 2 or drop the policy"
            )
        if moe.balance == "bias":
            raise UserError(
                "--moe-balance bias steers the choice by score and --moe-second-expert-policy "
                "sampling draws it: drop one of them"
            )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
