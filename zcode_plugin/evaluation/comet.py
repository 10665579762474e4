"""COMET, of the optional package unbabel-comet: a score by a trained model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from zcode_plugin.errors import UserError
from zcode_plugin.evaluation.generation import Translations

BATCH = 16


class CometError(Exception):
    """COMET did not score: why, on one line."""


def load(name: str) -> Any:
    """A model of COMET, on the CPU.

    Args:
        name: a `.ckpt` file with `hparams.yaml` in the folder above its own, the folder that holds
            that, or the name of a model to fetch.

    Raises:
        UserError: the package, or such a model, is missing.
    """
    if find_spec("comet") is None:
        raise UserError("--comet needs the package unbabel-comet: pip install '.[comet]'")
    with _quiet():
        from comet import download_model, load_from_checkpoint

        path = Path(name)
        if path.is_dir():
            path = path / "checkpoints" / "model.ckpt"
            if not path.is_file():
                raise UserError(f"--comet {name}: the folder holds no checkpoints/model.ckpt")
        if not path.is_file():
            try:
                path = Path(download_model(name))
            except Exception as error:  # of the network, of the hub, of COMET: all alike to users
                raise UserError(
                    f"--comet {name}: no such file or folder, and no model of this name can be "
                    "fetched: give the folder of a model that you have"
                ) from error
        try:
            return load_from_checkpoint(str(path))
        except Exception as error:  # what a foreign file makes the loader raise has no bounds
            raise UserError(
                f"--comet {name}: no model of COMET ({_first_line(error)}): give a folder with "
                "hparams.yaml and checkpoints/model.ckpt"
            ) from error


def score(model: Any, texts: Translations) -> float:
    """The mean of the segments' scores, as COMET gives it for a system.

    Raises:
        CometError: of whatever kind, such as memory that was not enough.
    """
    import torch

    samples = [
        {"src": source, "mt": hypothesis, "ref": reference}
        for source, hypothesis, reference in zip(
            texts.sources, texts.hypotheses, texts.references, strict=True
        )
    ]
    with _quiet():
        try:
            predicted = model.predict(
                samples,
                batch_size=BATCH,
                gpus=int(torch.cuda.is_available()),
                progress_bar=False,
                num_workers=0,
            )
        except Exception as error:  # of COMET, Lightning, torch: none may cost the translations
            raise CometError(_first_line(error)) from error
    return fmean(predicted.scores)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Lightning says of hardware, versions and tips in between a verb's lines."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning", "comet")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
