"""What objectives need beside encoder and decoder."""

from __future__ import annotations

import logging
from argparse import ArgumentParser
from collections.abc import Iterable
from typing import Any

from fairseq.models.roberta import RobertaLMHead
from torch import nn

from zcode_plugin.checkpoint.names import EMBEDDINGS, HEADS
from zcode_plugin.errors import UserError
from zcode_plugin.models.electra import Electra

logger = logging.getLogger(__name__)

GENERATOR_SIZE = 0.25
_MLM_WEIGHT = f"{HEADS}mlm.weight"


def add_head_arguments(parser: ArgumentParser) -> None:
    """Declare the flags of heads."""
    parser.add_argument(
        "--electra-generator-size",
        type=float,
        metavar="SHARE",
        help="electra: width of the generator as a share of the encoder's (default: "
        f"{GENERATOR_SIZE})",
    )


def build_heads(objectives: Iterable[str], encoder: Any, generator_size: float) -> nn.ModuleDict:
    """The heads of the objectives that have one, by objective.

    Args:
        objectives: names of those that are trained.
        encoder: of the model; the head of `mlm` predicts tokens with the same embeddings.
        generator_size: of `electra`, see `Generator`.

    Raises:
        UserError: an impossible size.
    """
    if not 0 < generator_size <= 1:
        raise UserError(f"--electra-generator-size {generator_size} must lie in (0, 1]")
    heads = nn.ModuleDict()
    if "mlm" in objectives:
        embedding = encoder.embed_tokens
        heads["mlm"] = RobertaLMHead(
            embedding.embedding_dim,
            embedding.num_embeddings,
            encoder.cfg.activation_fn,
            embedding.weight,
        )
    if "electra" in objectives:
        heads["electra"] = Electra(encoder, generator_size)
    return heads


def fit_heads(state_dict: dict[str, Any], model: nn.Module) -> None:
    """Drop heads of a checkpoint that this model has not; new ones keep their first values."""
    own = {name: value for name, value in model.state_dict().items() if name.startswith(HEADS)}
    dropped = [name for name in state_dict if name.startswith(HEADS) and name not in own]
    for name in dropped:
        del state_dict[name]
    # Copies: with weights in shards these are views of what is gathered for a moment alone.
    added = {name: value.clone() for name, value in own.items() if name not in state_dict}
    state_dict.update(added)
    if _MLM_WEIGHT in added:
        # One parameter with the embeddings: what is loaded last would be what both have.
        state_dict[_MLM_WEIGHT] = state_dict[EMBEDDINGS]
    for what, names in (
        ("left out of the checkpoint, no objective needs it", dropped),
        ("not in the checkpoint, begins anew", added),
    ):
        for head in sorted({name.removeprefix(HEADS).partition(".")[0] for name in names}):
            logger.info("the head of %s: %s", head, what)
