"""Checkpoint files: read behind torch's safe loader, written whole or not at all."""

from __future__ import annotations

import logging
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from zcode_plugin.errors import UserError
from zcode_plugin.files import write_all


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU as fairseq reads it: only classes on its allow-list are loaded.

    Raises:
        UserError: the file cannot be read, is damaged, is no fairseq checkpoint, or holds a class
            that is not on the list.
    """
    checkpoint_utils = fairseq_checkpoint_utils()
    _check_sums(path)
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats, in files that are none
            # fairseq's own torch: where its loader is mended, the allow-list comes with it.
            state = checkpoint_utils.torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise UserError(str(error).partition("\n")[0]) from error
    except Exception as error:  # what a damaged file makes the loader raise has no bounds
        raise UserError(f"{path}: no checkpoint, or not a whole one; save it again") from error
    return _checked(state, path)


def load_options(path: Path) -> dict[str, Any]:
    """Read a checkpoint for what is beside its weights; those are mapped, not read, where possible.

    Raises:
        UserError: as `load`.
    """
    import torch

    fairseq_checkpoint_utils()  # which makes the allow-list known
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        return load(path)  # an old format, which cannot be mapped, or an error, which this tells
    return _checked(state, path)


def load_mapped(path: Path) -> dict[str, Any]:
    """Read a checkpoint as `load` does, but map its tensors where possible: they take no memory.

    Raises:
        UserError: as `load`.
    """
    _check_sums(path)
    return load_options(path)


@contextmanager
def well_formed(path: Path) -> Iterator[None]:
    """For code that takes entries of a checkpoint to be what fairseq makes them.

    Files of the old format have no checksums, and those of other programs may look like fairseq's
    from afar: what can be in them has no bounds.

    Raises:
        UserError: in the place of any other exception, but for the system's and those of memory.
    """
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(f"{path} needs more memory than there is") from error
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{path}: not as fairseq saves checkpoints ({what})") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether it is what torch raises where a GPU or the host has no more memory."""
    name = type(error).__name__
    return name == "OutOfMemoryError" or "DefaultCPUAllocator: can't allocate" in str(error)


def save(state: Mapping[str, Any], path: Path) -> int:
    """Write a checkpoint under a temporary name, then rename it.

    Returns:
        Its size in bytes.

    Raises:
        UserError: it cannot be written; nothing is left behind.
    """
    return save_all([(path, state)])


def save_all(checkpoints: Iterable[tuple[Path, Mapping[str, Any]]]) -> int:
    """Write checkpoints that belong together, see `write_all`.

    Args:
        checkpoints: paths and states; a state is asked for when its turn comes.
    """
    import torch

    return write_all((path, partial(torch.save, dict(state))) for path, state in checkpoints)


def fairseq_checkpoint_utils() -> Any:
    """Import fairseq without what it says about packages that nothing here needs."""
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from fairseq import checkpoint_utils
    return checkpoint_utils


def _checked(state: Any, path: Path) -> dict[str, Any]:
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise UserError(f"{path}: no fairseq checkpoint: it holds no model")
    return state


def _check_sums(path: Path) -> None:
    """Compare the checksums of the file's parts, which torch writes and does not look at."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError:
        return  # the loader says what is wrong
    except Exception as error:  # zipfile knows a dozen for archives that are none
        raise UserError(f"{path}: damaged ({error}); copy or save it again") from error
    if damaged is not None:
        raise UserError(f"{path}: damaged ({damaged} fails its checksum); copy or save it again")
