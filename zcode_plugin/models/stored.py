"""Options stored in a checkpoint, as those of `moe_transformer`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from copy import copy
from dataclasses import fields
from typing import Any

from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_NAME_REGISTRY
from omegaconf import OmegaConf

from zcode_plugin.errors import UserError
from zcode_plugin.flags import first_given
from zcode_plugin.models.architectures import ARCHITECTURES
from zcode_plugin.models.moe_config import MoEConfig
from zcode_plugin.models.moe_transformer import MoETransformer

OURS, STOCK = "moe_transformer", "transformer"


def as_namespace(options: Any) -> Namespace:
    """A copy of options that fairseq saved as dict, Namespace or DictConfig."""
    if OmegaConf.is_config(options):
        options = OmegaConf.to_container(options)
    return Namespace(**(options if isinstance(options, Mapping) else vars(options)))


def with_experts(options: Namespace, moe: Mapping[str, Any]) -> Namespace:
    """The options of a dense model, as those of a model of its shape with experts.

    Args:
        options: of `moe_transformer` or of stock's `transformer`.
        moe: options of `MoEConfig`; those that are missing get the architecture's values.

    Raises:
        UserError: the options are of another model, or of one that cannot have experts.
    """
    name = getattr(options, "_name", None) or getattr(options, "arch", None)
    model = ARCH_MODEL_NAME_REGISTRY.get(str(name))
    if model not in (OURS, STOCK):
        raise UserError(
            f"the checkpoint is of the model {name or 'not named'}: upcycle takes {STOCK} of stock "
            f"and {OURS}, under the name of one of their architectures"
        )
    made = copy(options)
    made.shape_is_set = True  # whatever lies where the dense run saved, or began, by now
    ARCH_CONFIG_REGISTRY[name](made)
    _check_shape(made, model)
    for item in fields(MoEConfig):
        vars(made).pop(item.name, None)
    made.finetune_from_model = None  # whatever the dense run began with
    made.amp = False  # nor what it computed in
    made.base_layers = 0  # nor how it was spread
    made.arch = _architecture(str(name), model)
    if hasattr(options, "_name"):
        made._name = made.arch
    ARCH_CONFIG_REGISTRY[made.arch](made)
    vars(made).update(moe)
    return made


def _check_shape(options: Namespace, model: str) -> None:
    refused = {
        "--adaptive-input": getattr(options, "adaptive_input", False),
        "--adaptive-softmax-cutoff": getattr(options, "adaptive_softmax_cutoff", None),
        # Of ours the option only says that every rank has a file.
        "--base-layers": model == STOCK and bool(getattr(options, "base_layers", 0)),
    }
    if flag := first_given(refused):
        raise UserError(f"the checkpoint is of a model with {flag}: upcycle takes none of those")


def _architecture(name: str, model: str) -> str:
    if model == STOCK:
        return "moe_transformer_stock"
    twin = name.removesuffix("_dense")
    return twin if twin in ARCHITECTURES else name


def training_flags(options: Namespace) -> list[str]:
    """The flags with which fairseq-train builds the model of these options.

    Of all flags only those whose value does not follow from the architecture and the flags before.
    """
    parser = ArgumentParser()
    MoETransformer.add_args(parser)
    given = Namespace()
    line = ["--arch", options.arch]
    for action in parser._actions:
        value = getattr(options, action.dest, None)
        if action.dest == "help" or value is None or value is False or value == "":
            continue
        filled = copy(given)
        ARCH_CONFIG_REGISTRY[options.arch](filled)
        known = getattr(filled, action.dest, _default(action.dest))
        if value == known or str(value) == str(known):
            continue
        setattr(given, action.dest, value)
        line.append(action.option_strings[0])
        if action.nargs != 0:
            line.append(str(value))
    return line


def _default(name: str) -> Any:
    """Stock's own default of an option that no architecture sets."""
    from fairseq.models.transformer import TransformerConfig

    config = TransformerConfig()
    try:
        return getattr(config, name)
    except AttributeError:
        return None
