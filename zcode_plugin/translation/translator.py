"""Translates text with a checkpoint, by fairseq's own tasks and its own generator."""

from __future__ import annotations

import math
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from zcode_plugin.errors import UserError
from zcode_plugin.translation.options import Batching, Search

if TYPE_CHECKING:
    from torch import Tensor

    from zcode_plugin.translation.loading import LoadedCheckpoint


@dataclass(frozen=True)
class Hypothesis:
    """A translation and its score: log2 of its probability, divided by its length ** lenpen."""

    text: str
    score: float


@dataclass(frozen=True)
class Translation:
    """What became of a line.

    Attributes:
        hypotheses: best first, one at least.
        tokens: of the line.
        unread: of these, how many at its end were more than the model can read.
    """

    hypotheses: list[Hypothesis]
    tokens: int = 0
    unread: int = 0


class Translator:
    """A checkpoint that translates; make one with `load`.

    What stock fairseq-generate prints for a sentence is what this returns, whatever else is
    translated with it. Not safe for use by several threads at a time.

    Args:
        loaded: see `load`.
    """

    def __init__(self, loaded: LoadedCheckpoint):
        self._loaded = loaded

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        data: str | Path | None = None,
        sentencepiece_model: str | Path | None = None,
        cpu: bool = False,
        precision: str = "float32",
    ) -> Translator:
        """Read a checkpoint for one process, on a GPU where there is one.

        Args:
            checkpoint: merged, pruned or quantised ones too.
            data: folder of training, for what the checkpoint does not say of itself; by default
                the one that it was trained on, if that is there.
            sentencepiece_model: what cuts text into pieces; by default `sentencepiece.model` in
                `data` or beside the checkpoint.
            cpu: leave a GPU alone.
            precision: of weights and activations: `float32`, `float16` or `bfloat16`.

        Raises:
            UserError: a file is missing, damaged, or not of this checkpoint.
        """
        from zcode_plugin.checkpoint.io import fairseq_checkpoint_utils

        fairseq_checkpoint_utils()  # before what imports fairseq with all its warnings
        from zcode_plugin.translation.loading import load_checkpoint

        return cls(
            load_checkpoint(
                Path(checkpoint),
                None if data is None else Path(data),
                None if sentencepiece_model is None else Path(sentencepiece_model),
                cpu=cpu,
                precision=precision,
            )
        )

    @property
    def languages(self) -> list[str]:
        """Languages that the checkpoint knows."""
        return list(self._loaded.languages)

    def check_direction(self, source: str, target: str) -> None:
        """Refuse a direction before there is text.

        Raises:
            UserError: a language that the checkpoint does not know.
        """
        self._loaded.task(source, target)

    @overload
    def __call__(self, text: str, *, source: str, target: str) -> str: ...

    @overload
    def __call__(self, text: list[str], *, source: str, target: str) -> list[str]: ...

    def __call__(self, text: str | list[str], *, source: str, target: str) -> str | list[str]:
        """Translate a line, or several at once, with the default search and batches.

        Warns when the end of a line is not translated, see `Translation.unread`.

        Raises:
            UserError: a language that the checkpoint does not know.
        """
        lines = [text] if isinstance(text, str) else text
        translations = self.translate(lines, source=source, target=target)
        if any(translation.unread for translation in translations):
            warnings.warn(
                "a line is longer than the model can read: its end is left out", stacklevel=2
            )
        texts = [translation.hypotheses[0].text for translation in translations]
        return texts[0] if isinstance(text, str) else texts

    def translate(
        self,
        lines: Sequence[str],
        *,
        source: str,
        target: str,
        search: Search | None = None,
        batching: Batching | None = None,
        on_batch: Callable[[int], None] = lambda lines: None,
    ) -> list[Translation]:
        """Translate lines; one without text gives one without text.

        Args:
            lines: text, without line breaks.
            source: their language.
            target: the language to translate into.
            search: see `Search`; by default its own defaults.
            batching: see `Batching`; by default its own defaults.
            on_batch: called after each batch with the number of its lines.

        Returns:
            For each line, in their order.

        Raises:
            UserError: a language that the checkpoint does not know, or too little memory.
        """
        from torch import OutOfMemoryError

        search, batching = search or Search(), batching or Batching()
        task = self._loaded.task(source, target)
        translations = [Translation([Hypothesis("", 0.0)]) for _ in lines]
        numbers, sources, unread = self._sources(task, lines, batching)
        on_batch(len(lines) - len(numbers))
        try:
            for ids, batch in self._hypotheses(task, sources, search, batching):
                for index, hypotheses in zip(ids, batch, strict=True):
                    number, left = numbers[index], unread[index]
                    tokens = len(sources[index]) - 1 + left
                    translations[number] = Translation(hypotheses, tokens, left)
                on_batch(len(ids))
        except OutOfMemoryError as error:
            raise UserError(
                f"--max-tokens {batching.max_tokens} takes more memory than the GPU has: lower it"
            ) from error
        return translations

    def _sources(
        self, task: Any, lines: Sequence[str], batching: Batching
    ) -> tuple[list[int], list[Tensor], list[int]]:
        """Lines with text: their numbers, their tokens and the end, and how many were cut off."""
        import torch

        encoded, _ = task.get_interactive_tokens_and_lengths(lines, self._loaded.cut)
        found = [(number, tokens) for number, tokens in enumerate(encoded) if len(tokens) > 1]
        longest = self._loaded.longest_source(task, batching.max_tokens)
        sources = [
            torch.cat([tokens[: longest - 1], tokens[-1:]]) if len(tokens) > longest else tokens
            for _, tokens in found
        ]
        unread = [len(whole) - len(cut) for (_, whole), cut in zip(found, sources, strict=True)]
        return [number for number, _ in found], sources, unread

    def _hypotheses(
        self, task: Any, sources: Sequence[Tensor], search: Search, batching: Batching
    ) -> Iterator[tuple[list[int], list[list[Hypothesis]]]]:
        """Batches, sorted by length: which of the sources, and the hypotheses of each."""
        from fairseq import utils

        if not sources:
            return
        loaded = self._loaded
        generator = task.build_generator([loaded.model], Namespace(**asdict(search)))
        batches = task.get_batch_iterator(
            task.build_dataset_for_inference(sources, [len(tokens) for tokens in sources]),
            max_tokens=batching.max_tokens,
            max_sentences=batching.batch_size,
            disable_iterator_cache=True,
        ).next_epoch_itr(shuffle=False)
        for batch in batches:
            sample = {"net_input": {**batch["net_input"]}}
            sample["net_input"].pop("prev_output_tokens", None)
            if loaded.on_gpu:
                sample = utils.move_to_cuda(sample)
            found = task.inference_step(generator, [loaded.model], sample)
            ignored = generator.symbols_to_strip_from_output
            yield (
                batch["id"].tolist(),
                [
                    [self._hypothesis(task, one, ignored) for one in of_a_line[: search.nbest]]
                    for of_a_line in found
                ],
            )

    def _hypothesis(self, task: Any, found: dict[str, Any], ignored: set[int]) -> Hypothesis:
        text = task.target_dictionary.string(
            found["tokens"].int().cpu(),
            self._loaded.joined_by,
            extra_symbols_to_ignore=ignored,
        )
        return Hypothesis(text, float(found["score"]) / math.log(2))
