"""Calls of stock fairseq-generate, one a direction, and what they print."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zcode_plugin.checkpoint import config
from zcode_plugin.data.pairs import Pair, stored_directions
from zcode_plugin.data.symbols import GLUED, SPACE, language_token, objective_token
from zcode_plugin.errors import UserError
from zcode_plugin.flags import flag_of

# Options of the task with which the model was trained that it must be translated with, too.
_LANGUAGE_OPTIONS = ("lang_pairs", "langs", "lang_dict", "encoder_langtok", "decoder_langtok")
_POSITION_OPTIONS = ("max_source_positions", "max_target_positions")
TASK_OPTIONS = {
    "multitask_multilingual": (*_LANGUAGE_OPTIONS, "objective_token", *_POSITION_OPTIONS),
    "translation_multi_simple_epoch": (
        *_LANGUAGE_OPTIONS,
        *_POSITION_OPTIONS,
        "lang_tok_style",
        "lang_tok_replacing_bos_eos",
    ),
    "translation": _POSITION_OPTIONS,
}

_PRINTED = re.compile(r"(?P<kind>[STHD])-(?P<id>\d+)\t(?P<rest>.*)", re.DOTALL)


@dataclass(frozen=True)
class Translations:
    """Detokenised text of one direction, in the order of the data."""

    sources: list[str]
    hypotheses: list[str]
    references: list[str]

    @property
    def unknown_references(self) -> int:
        """References with a token that the dictionary lacks, which no translation can match."""
        return sum("<<unk>>" in reference for reference in self.references)


def choose_directions(text: str | None, data: Path, subset: str) -> list[Pair]:
    """The directions of `--pairs`, or all that are stored.

    Raises:
        UserError: no data for one, or for any.
    """
    stored = stored_directions(data, subset)
    if not stored:
        raise UserError(f"{data} holds no split {subset} of any pair: see --gen-subset")
    if text is None:
        return stored
    by_name = {str(direction): direction for direction in stored}
    for name in text.split(","):
        if name not in by_name:
            raise UserError(f"--pairs {name}: {data} holds only {subset} of {', '.join(by_name)}")
    return [by_name[name] for name in dict.fromkeys(text.split(","))]


def trained_directions(directions: list[Pair], task: Any, langs: Sequence[str] = ()) -> list[Pair]:
    """Those of the data that a checkpoint knows: stock's task `translation` has but one.

    Args:
        directions: of the data.
        task: the checkpoint's `cfg.task`.
        langs: its languages; none where it does not say.

    Raises:
        UserError: there are none.
    """
    if config.task_name(task) != "translation":
        known = [one for one in directions if not langs or {one.src, one.tgt} <= {*langs}]
        if not known:
            named = ",".join(langs)
            raise UserError(f"there is no data of the checkpoint's languages, {named}")
        return known
    only = Pair(*(str(config.get(task, f"{side}_lang")) for side in ("source", "target")))
    if only not in directions:
        raise UserError(f"there is no data of {only}, in which the checkpoint was trained")
    return [only]


def task_arguments(task: Any, langs: Sequence[str] = ()) -> list[str]:
    """`--task` and its options as in the checkpoint.

    Args:
        task: the checkpoint's `cfg.task`.
        langs: its languages, if it says which, instead of the files that named them in training.

    Raises:
        UserError: a task that does not translate between the languages of a data folder.
    """
    name = config.task_name(task)
    if name not in TASK_OPTIONS:
        raise UserError(
            f"the checkpoint's task is {name or 'not named'}: zcode evaluate knows "
            f"{', '.join(TASK_OPTIONS)}"
        )
    arguments = ["--task", name]
    for option in TASK_OPTIONS[name]:
        value = langs if option == "langs" and langs else config.get(task, option)
        if option == "lang_dict" and "--langs" in arguments:
            continue  # the two exclude each other
        if isinstance(value, (list, tuple)):
            value = ",".join(value)
        if value is True:
            arguments.append(flag_of(option))
        elif value not in (None, False, ""):
            arguments += [flag_of(option), str(value)]
    return arguments


def read_translations(output: str, direction: Pair) -> Translations:
    """Read the S-, T-, D- (or H-) lines of fairseq-generate; of several hypotheses the first, best.

    Raises:
        UserError: sentences without reference or hypothesis.
    """
    found: dict[str, dict[int, str]] = {kind: {} for kind in "STHD"}
    for line in output.split("\n"):
        if match := _PRINTED.fullmatch(line):
            text = match["rest"]
            if match["kind"] in "HD":
                text = text.partition("\t")[2]  # after the score
            found[match["kind"]].setdefault(int(match["id"]), text)
    hypotheses = found["D"] or found["H"]
    for what, texts in (("references", found["T"]), ("translations", hypotheses)):
        if not texts or texts.keys() != found["S"].keys():
            raise UserError(
                f"fairseq-generate printed {len(texts)} {what} of {len(found['S'])} sentences of "
                f"{direction}: run it by hand to see why"
            )
    return Translations(
        [_without_added_tokens(text, direction) for text in _in_order(found["S"])],
        _in_order(hypotheses),
        _in_order(found["T"]),
    )


def _in_order(texts: dict[int, str]) -> list[str]:
    return [texts[number] for number in sorted(texts)]


def _without_added_tokens(text: str, direction: Pair) -> str:
    languages = direction.src, direction.tgt
    # Stock's task also writes [de_DE], as of mBART, and puts a token at the end.
    for token in (
        objective_token("mt"),
        *map(language_token, languages),
        *map("[{}]".format, languages),
    ):
        text = text.removeprefix(token).lstrip()
        text = text.removesuffix(f" {token}")
    return text


def generate_arguments(
    data: Path,
    checkpoint: Path,
    user_dir: Path,
    direction: Pair,
    task: Iterable[str],
    options: Sequence[str],
) -> tuple[str, ...]:
    """The arguments of fairseq-generate for one direction; later `options` win."""
    return (
        str(data),
        *("--path", str(checkpoint), "--user-dir", str(user_dir)),
        *task,
        *("-s", direction.src, "-t", direction.tgt),
        *_joining(data, direction.tgt),
        *("--scoring", "sacrebleu", "--no-progress-bar"),
        *options,
    )


def _joining(data: Path, lang: str) -> list[str]:
    """How fairseq-generate makes words of the pieces of a language: the dictionary shows it."""
    path = data / f"dict.{lang}.txt"
    if not path.is_file():
        return []  # fairseq-generate says what it misses
    with path.open(encoding="utf-8") as file:
        symbols = [line.rpartition(" ")[0] for line in file]
    if any(symbol.startswith(SPACE) for symbol in symbols):
        return ["--remove-bpe", "sentencepiece"]
    if any(symbol.endswith(GLUED) for symbol in symbols):
        return ["--remove-bpe", "subword_nmt"]
    return []
