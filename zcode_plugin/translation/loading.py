"""A checkpoint ready to translate: its model, how text is cut, and the task of each direction."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, tasks, utils
from fairseq.data import encoders
from omegaconf import OmegaConf

import zcode_plugin
from zcode_plugin.checkpoint import config, io, names
from zcode_plugin.checkpoint.folders import SENTENCEPIECE
from zcode_plugin.checkpoint.tokenisation import Vocabulary, find_sentencepiece, find_vocabulary
from zcode_plugin.data.symbols import SPACE
from zcode_plugin.errors import UserError, suggestion

OWN_TASK = "multitask_multilingual"
STOCK_TASK = "translation"


class LoadedCheckpoint:
    """What translates.

    Args:
        tasks: see `_OwnTasks` and `_StockTasks`.
        model: in evaluation, on its device.
        sentencepiece: the file that cuts text; None for text that is cut at spaces.

    Attributes:
        languages: those of the checkpoint.
        joined_by: fairseq's name of what joins pieces; None for spaces.
        on_gpu: whether the model is there.
    """

    def __init__(self, tasks: _OwnTasks | _StockTasks, model: Any, sentencepiece: Path | None):
        self._tasks = tasks
        self.model = model
        self.languages = tasks.languages
        self.joined_by = None if sentencepiece is None else "sentencepiece"
        self.on_gpu = next(model.parameters()).is_cuda
        self._by_direction: dict[tuple[str, str], Any] = {}
        self._pieces: Any = None
        if sentencepiece is not None:
            self._pieces = encoders.build_bpe(
                Namespace(bpe="sentencepiece", sentencepiece_model=str(sentencepiece))
            )

    def cut(self, text: str) -> str:
        """The pieces of a text, with spaces between them."""
        return text if self._pieces is None else self._pieces.encode(text)

    def task(self, source: str, target: str) -> Any:
        """The task of a direction.

        Raises:
            UserError: the checkpoint does not know a language.
        """
        for flag, lang in (("--source-lang", source), ("--target-lang", target)):
            if lang not in self.languages:
                raise UserError(
                    f"{flag} {lang}: the checkpoint's languages are {', '.join(self.languages)}"
                    f"{suggestion(lang, self.languages)}"
                )
        direction = source, target
        if direction not in self._by_direction:
            self._by_direction[direction] = self._tasks.build(source, target)
        return self._by_direction[direction]

    def longest_source(self, task: Any, max_tokens: int) -> int:
        """Tokens that a source may have, its end included.

        Raises:
            UserError: `max_tokens` leaves room for none.
        """
        positions, _ = utils.resolve_max_positions(task.max_positions(), self.model.max_positions())
        end = torch.tensor([task.source_dictionary.eos()])
        before = len(task.build_dataset_for_inference([end], [1])[0]["source"]) - len(end)
        longest = min(int(positions), max_tokens) - before
        if longest < 2:
            raise UserError(f"--max-tokens {max_tokens} is too small for a sentence: raise it")
        return longest


class _OwnTasks:
    """Tasks of this plugin, which need no folder: the checkpoint names its symbols.

    Args:
        options: the task's, as stored.
        vocabulary: see `find_vocabulary`.
    """

    def __init__(self, options: Any, vocabulary: Vocabulary):
        self._options, self._vocabulary = options, vocabulary
        self.languages = vocabulary.langs

    def build(self, source: str | None = None, target: str | None = None) -> Any:
        """The task of a direction, or of none."""
        return _setup(
            self._options,
            {
                "eval_bleu": False,
                "langs": ",".join(self.languages),
                "lang_dict": None,
                "source_lang": source,
                "target_lang": target,
            },
            symbols=self._vocabulary.symbols,
        )


class _StockTasks:
    """Stock's `translation`, of one direction, with its dictionaries in a folder."""

    def __init__(self, options: Any, data: Path):
        self._options, self._data = options, data
        languages = (config.get(options, "source_lang"), config.get(options, "target_lang"))
        self.languages = [str(lang) for lang in languages]

    def build(self, source: str | None = None, target: str | None = None) -> Any:
        """The task of its direction.

        Raises:
            UserError: another one.
        """
        known = tuple(self.languages)
        if (source or known[0], target or known[1]) != known:
            raise UserError(f"the checkpoint translates from {known[0]} to {known[1]} alone")
        return _setup(self._options, {"data": str(self._data), "eval_bleu": False})


def load_checkpoint(
    path: Path, data: Path | None, sentencepiece: Path | None, *, cpu: bool, precision: str
) -> LoadedCheckpoint:
    """Read a checkpoint, see `Translator.load`.

    Raises:
        UserError: a file is missing, damaged, or not of this checkpoint.
    """
    names.check_whole(path)
    zcode_plugin.register()
    with io.well_formed(path):
        state = io.load_options(path)
        made, vocabulary = _find_tasks(state, path, data)
        pieces = _find_pieces(sentencepiece, data, path, state, vocabulary)
        models, _ = checkpoint_utils.load_model_ensemble([str(path)], task=made.build())
        model = models[0].to(getattr(torch, precision))
        if torch.cuda.is_available() and not cpu:
            model.cuda()
    model.prepare_for_inference_(Namespace(generation=Namespace()))
    return LoadedCheckpoint(made, model, pieces)


def _find_tasks(
    state: Mapping[str, Any], path: Path, data: Path | None
) -> tuple[_OwnTasks | _StockTasks, Vocabulary]:
    options = config.section(state, "task")
    name = config.task_name(options) or "not named"
    if name == OWN_TASK:
        names_symbols = bool((state.get("task_state") or {}).get("symbols"))
        folder = data if data is not None or names_symbols else _stored_folder(options)
        vocabulary = find_vocabulary(state, path, folder, len(state["model"][names.EMBEDDINGS]))
        return _OwnTasks(options, vocabulary), vocabulary
    if name != STOCK_TASK:
        raise UserError(
            f"{path} is of the task {name}: zcode translate knows {OWN_TASK} and {STOCK_TASK}, "
            "fairseq-interactive all"
        )
    folder = data or _stored_folder(options)
    if folder is None or not folder.is_dir():
        raise UserError(
            f"{path} is of stock's task {name}, whose dictionaries lie in the folder of training: "
            "name it with --data"
        )
    made = _StockTasks(options, folder)
    symbols = list(made.build().source_dictionary.symbols)
    return made, Vocabulary(symbols, made.languages, None, False)


def _stored_folder(options: Any) -> Path | None:
    """The folder of training, if it is still there."""
    folders = [Path(folder) for folder in str(config.get(options, "data", "")).split(":") if folder]
    return folders[0] if folders and folders[0].is_dir() else None


def _find_pieces(
    model: Path | None,
    data: Path | None,
    path: Path,
    state: Mapping[str, Any],
    vocabulary: Vocabulary,
) -> Path | None:
    stored = _stored_folder(config.section(state, "task"))
    folders = [folder for folder in (data, path.parent, stored) if folder is not None]
    folder = next((one for one in folders if (one / SENTENCEPIECE).is_file()), None)
    found = find_sentencepiece(model, folder, vocabulary)
    if found is None and any(symbol.startswith(SPACE) for symbol in vocabulary.symbols):
        raise UserError(
            f"{path} knows text as pieces of SentencePiece, but no {SENTENCEPIECE} is beside it or "
            "in its folder of training: name it with --sentencepiece-model, or the folder with "
            "--data"
        )
    return found


def _setup(options: Any, overrides: Mapping[str, Any], **extra: Any) -> Any:
    changed = copy(options)
    for name, value in overrides.items():
        config.put(changed, name, value)
    if isinstance(changed, dict):
        changed = OmegaConf.create(changed)
    return tasks.setup_task(changed, **extra)
