"""Training a part of a model."""

from __future__ import annotations

from torch import nn

from zcode_plugin.errors import UserError
from zcode_plugin.flags import comma_list


def freeze(model: nn.Module, words: str) -> None:
    """Leave training to parameters with one of the comma-separated words in their name.

    A word is one or more whole parts of a name between dots: `gate` means `...moe_layer.gate...`,
    not `...gated...`.

    Raises:
        UserError: a word that no parameter has.
    """
    wanted = comma_list(words)
    parameters = dict(model.named_parameters())
    trained = {word: {name for name in parameters if f".{word}." in f".{name}."} for word in wanted}
    for word, found in trained.items():
        if not found:
            raise UserError(
                f"--freeze-except {words}: no parameter of the model has {word!r} in its name; "
                "names are such as encoder.layers.1.moe_layer.gate.wg.weight"
            )
    if not wanted:
        raise UserError("--freeze-except names nothing to train: give words such as gate,experts")
    kept = set().union(*trained.values())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in kept)
