"""Readies a model for the checkpoint that its training starts from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from zcode_plugin.checkpoint import io
from zcode_plugin.checkpoint.resume import check_start
from zcode_plugin.checkpoint.vocabulary import rows_for
from zcode_plugin.errors import UserError
from zcode_plugin.flags import is_given
from zcode_plugin.models.moe_transformer import MoETransformer

logger = logging.getLogger(__name__)


def ready_for_start(cfg: Any, model: Any, symbols: Sequence[str], trained: Sequence[str]) -> None:
    """Refuse what the run must not start from; ready the model for another vocabulary.

    Args:
        cfg: options of the run.
        model: that is to be trained.
        symbols: of the run's dictionary, in the order of their numbers.
        trained: names of the parameters that are trained, as far as they are known.

    Raises:
        UserError: one line with the flag and the remedy.
    """
    pretrained = check_start(cfg, symbols, trained)
    if pretrained is None:
        return
    rows_V = rows_for(io.load_options(pretrained), symbols, pretrained)
    if rows_V is None:
        return
    if is_given(cfg, "store_ema"):
        raise UserError(
            f"--store-ema: the averages in {pretrained} are of another vocabulary than this "
            "run's: leave the flag out"
        )
    if not isinstance(model, MoETransformer):
        raise UserError(
            f"--finetune-from-model {pretrained}: its vocabulary is another than this run's, "
            "which takes an --arch of the model moe_transformer"
        )
    if model.slicing.size > 1:
        raise UserError(
            f"--finetune-from-model {pretrained}: its vocabulary is another than this run's, "
            "whose slices are of other symbols: finetune in whole layers first, without "
            "--model-parallel-size"
        )
    model.pretrained_rows = rows_V
    logger.info(
        "vocabulary: %d symbols as in %s, %d new ones",
        int((rows_V >= 0).sum()),
        pretrained,
        int((rows_V < 0).sum()),
    )
    moved = int(((rows_V >= 0) & (rows_V != torch.arange(len(rows_V)))).sum())
    if moved and model.moe.gate_knows_tokens:
        logger.warning(
            "%d symbols have another number than in %s: the gate tells tokens by their numbers "
            "and sends these to other experts than it did there",
            moved,
            pretrained,
        )
