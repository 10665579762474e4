"""Writes docs/reference.md, all flags and verbs, out of the parsers that read them: `make docs`."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

TITLE = """# Reference

All flags of the plugin and all verbs of `zcode`, written by `make docs` out of the parsers that
read them. Flags of stock fairseq are those of `fairseq-train --help` and of
[its documentation](https://fairseq.readthedocs.io/en/latest/command_line_tools.html). In a YAML
for `fairseq-hydra-train` a flag's name has `_` for `-`
([examples/configs](../examples/configs/README.md)).
"""
# Groups of the flags of task, model and criterion, each with the beginnings of the names in it;
# the first group that fits a flag has it, and a flag that none fits is an error.
TASK = {
    "Objectives": ("multitask", "objective"),
    "Data and languages": (
        *("data", "lang", "mono", "source_lang", "target_lang", "encoder_langtok"),
        *("decoder_langtok", "keep_inference", "left_pad", "max_source", "max_target"),
    ),
    "Sampling": ("sampling",),
    "Noise of dae": ("dae",),
    "Masking of mlm and electra": ("mlm",),
    "Ranks": ("distributed_timeout", "check_replicas"),
    "BLEU in validation": ("eval_",),
}
MODEL = {
    "Layers with experts": (
        *("moe_freq", "encoder_moe", "decoder_moe", "moe_expert_count", "moe_residual"),
        *("expert_parallel", "moe_expert_bits"),
    ),
    "Gate": (
        *("moe_gate", "moe_top_k", "moe_second", "moe_jitter", "moe_gating_use", "moe_normalize"),
        "use_moe_pad_mask",
    ),
    "Capacity": (
        *("moe_capacity", "moe_eval_capacity", "moe_min", "moe_token_priority"),
        "moe_batch_prioritized",
    ),
    "Balance": ("moe_balance", "moe_bias"),
    "Regularisers": ("moe_eom", "moe_gating_dropout"),
    "Heads and fine-tuning": ("electra", "freeze"),
}
CRITERION = {"Losses": ("",)}


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    lines = [list(header), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return ["", *("| " + " | ".join(line) + " |" for line in lines), ""]


def flag_of(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    return ", ".join(f"`{name}`" for name in action.option_strings if "_" not in name)


def value_of(action: argparse.Action) -> str:
    """What follows the flag: a choice, a type, or nothing."""
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return " \\| ".join(f"`{choice}`" for choice in action.choices)
    named = {"int": "whole number", "float": "number", "Path": "path"}
    words = [named.get(getattr(action.type, "__name__", "str"), "text")]
    if isinstance(action.metavar, str) and action.option_strings and action.metavar != "N":
        words.insert(0, cell(action.metavar))
    return ", ".join([*words, "several"] if action.nargs in ("+", "*") else words)


def default_of(action: argparse.Action, defaults: Mapping[str, Any]) -> str:
    value = defaults.get(action.dest, action.default)
    if action.required or not action.option_strings:
        return "required" if action.nargs not in ("?", "*") else ""
    if action.nargs == 0 or value in (None, "", [], argparse.SUPPRESS) or "${" in str(value):
        return ""
    return f"`{value}`"


def help_of(action: argparse.Action, default: str) -> str:
    assert action.help, f"{action.option_strings or action.dest} has no help text"
    shown = default.strip("`")
    return cell(action.help.replace(f" (default: {shown})", "").replace("%%", "%"))


def flags(actions: Iterable[argparse.Action], defaults: Mapping[str, Any]) -> list[str]:
    rows = []
    for action in actions:
        if action.help != argparse.SUPPRESS and action.dest != "help":
            default = default_of(action, defaults)
            rows.append(
                (flag_of(action), value_of(action), default, help_of(action, default)),
            )
    return table(("flag", "value", "default", "meaning"), rows)


def grouped(
    parser: argparse.ArgumentParser,
    groups: Mapping[str, tuple[str, ...]],
    defaults: Mapping[str, Any],
) -> list[str]:
    """A table for each group."""
    actions = [action for action in parser._actions if action.dest != "help"]
    members: dict[str, list[argparse.Action]] = {title: [] for title in groups}
    for action in actions:
        title = next((t for t, starts in groups.items() if action.dest.startswith(starts)), None)
        assert title, f"docs/reference.py: no group for {action.dest}"
        members[title].append(action)
    return [line for title in groups for line in (f"### {title}", *flags(members[title], defaults))]


def of_dataclass(config: Any) -> argparse.ArgumentParser:
    from fairseq.dataclass.utils import gen_parser_from_dataclass

    parser = argparse.ArgumentParser(add_help=False)
    gen_parser_from_dataclass(parser, config())
    for action in list(parser._actions):
        if action.help is None:  # an option of stock's that the task borrows
            parser._remove_action(action)
    return parser


def plugin() -> list[str]:
    """Task, model and criterion."""
    from zcode_plugin.criterions.multitask_summed_loss import MultitaskSummedLossConfig
    from zcode_plugin.models.heads import GENERATOR_SIZE, add_head_arguments
    from zcode_plugin.models.moe_config import MoEConfig, add_moe_arguments
    from zcode_plugin.tasks.config import MultitaskMultilingualConfig

    model = argparse.ArgumentParser(add_help=False)
    add_moe_arguments(model)
    add_head_arguments(model)
    defaults = {item.name: item.default for item in fields(MoEConfig)}
    defaults["electra_generator_size"] = GENERATOR_SIZE
    return [
        "## `--task multitask_multilingual`",
        "",
        *grouped(of_dataclass(MultitaskMultilingualConfig), TASK, {}),
        "## `--arch moe_transformer...`",
        "",
        "Beside all flags of stock's `transformer`; `--arch` gives defaults of its own (below).",
        "",
        *grouped(model, MODEL, defaults),
        "## `--criterion multitask_summed_loss`",
        "",
        *grouped(of_dataclass(MultitaskSummedLossConfig), CRITERION, {}),
    ]


def architectures() -> list[str]:
    from zcode_plugin.models.architectures import ARCHITECTURES, BASE

    def options(preset: Mapping[str, Any]) -> str:
        return ", ".join(f"`{name} {value}`" for name, value in preset.items())

    rows = [(f"`{name}`", options(preset) or "the base") for name, preset in ARCHITECTURES.items()]
    return [
        "## Architectures",
        "",
        f"The base: {options(BASE)}. Each name is what it changes there:",
        *table(("`--arch`", "changes"), rows),
    ]


def verbs() -> list[str]:
    from zcode_plugin.cli.main import VERBS

    lines = ["## `zcode`", "", "`zcode VERB --help` shows the same, with examples."]
    lines += table(
        ("verb", "what it does"),
        ((f"[`{verb.name}`](#zcode-{verb.name})", cell(verb.summary)) for verb in VERBS),
    )
    for verb in VERBS:
        parser = argparse.ArgumentParser(add_help=False)
        verb.load().add_arguments(parser)
        whose = "THE MODEL" if verb.name == "plan" else "STOCK"
        rest = f" ... [-- FLAGS OF {whose}]" if parser.get_default("extra") is not None else ""
        lines += [f"### zcode {verb.name}", "", cell(parser.description or verb.summary)]
        lines += [f"`zcode {verb.name}{rest}`"] * bool(rest)
        lines += flags(parser._actions, {}) if parser._actions else ["", "No arguments.", ""]
    return lines


def mends() -> list[str]:
    from zcode_mends import MENDS

    rows = [(f"`{mend.name}`", cell(mend.reason)) for mend in MENDS]
    return [
        "## Environment",
        "",
        "`ZCODE_COMPAT_DISABLE=NAME,...` leaves mends of stock fairseq out, to find out whether "
        "one is to blame; `all` leaves out all. `ZCODE_COMPAT_ALLOW=package.module.Class,...` "
        "names further classes that checkpoints may hold.",
        *table(("mend", "reason"), rows),
    ]


def reference() -> str:
    """The whole page."""
    with contextlib.redirect_stdout(io.StringIO()):  # fairseq logs while it is imported
        import zcode_plugin

        zcode_plugin.register()
        lines = [*plugin(), *architectures(), *verbs(), *mends()]
    return TITLE + "\n" + "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
