"""Loads the corpora of a split, with language tokens in their places."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from fairseq.data import Dictionary

from zcode_plugin.data.corpora import (
    Corpus,
    DenoisingCorpus,
    MaskedCorpus,
    ParallelCorpus,
    load_tokens,
    ordinary_tokens,
    prepend,
    word_starts,
)
from zcode_plugin.data.objectives import KNOWN, MASKED
from zcode_plugin.data.pairs import Pair, monolingual_languages, monolingual_prefix, pair_prefix
from zcode_plugin.data.schedules import Schedule
from zcode_plugin.data.symbols import MASK, language_token, objective_token
from zcode_plugin.errors import UserError
from zcode_plugin.lists import comma_list
from zcode_plugin.tasks.config import (
    MultitaskMultilingualConfig,
    masking,
    noise,
    noise_strength,
)


class CorpusLoader:
    """Reads what `fairseq-preprocess` wrote.

    Args:
        cfg: the task's options.
        dictionary: shared by all languages, language tokens and mask included.
        langs: all languages.
        pairs: directions of the objective mt.
    """

    def __init__(
        self,
        cfg: MultitaskMultilingualConfig,
        dictionary: Dictionary,
        langs: list[str],
        pairs: list[Pair],
    ):
        self.cfg = cfg
        self.dictionary = dictionary
        self.langs = langs
        self.pairs = pairs
        self.noise = noise(cfg)
        self.noise_strength = noise_strength(cfg)
        self.masking = {name: masking(cfg, name) for name in MASKED}
        self.mask = dictionary.index(MASK)

    # Passes over the vocabulary: once for all corpora, and not at all for translation.

    @cached_property
    def starts_word(self) -> np.ndarray:
        """See `word_starts`."""
        return word_starts(self.dictionary)

    @cached_property
    def ordinary(self) -> np.ndarray:
        """See `ordinary_tokens`: without language tokens and the mask."""
        symbols = [language_token(lang) for lang in self.langs]
        if self.cfg.objective_token:
            symbols += [objective_token(name) for name in KNOWN]
        special = {self.dictionary.index(symbol) for symbol in symbols}
        return ordinary_tokens(self.dictionary, {*special, self.mask})

    def corpora(self, name: str, directory: Path, split: str, required: bool) -> list[Corpus]:
        """The corpora of an objective; when `required`, an error names what is missing.

        Raises:
            UserError: data that is asked for is missing or cannot be read.
        """
        if name == "mt":
            return self._parallel_corpora(directory, split, required)
        return self._monolingual_corpora(name, directory, split, required)

    def _parallel_corpora(self, directory: Path, split: str, required: bool) -> list[Corpus]:
        corpora: list[Corpus] = []
        for pair in self.pairs:
            prefix = pair_prefix(directory, split, pair)
            if prefix is not None:
                corpora.append(self.parallel_corpus(prefix, pair))
            elif required:
                raise UserError(
                    f"{directory} has no {split}.{pair}.* nor {split}.{pair.reverse}.*: binarise "
                    f"the pair or drop {pair} from --lang-pairs"
                )
        if required and not corpora:
            raise UserError(f"{directory} has no parallel data of the split {split}")
        return corpora

    def parallel_corpus(self, prefix: Path, pair: Pair) -> ParallelCorpus:
        """Sentence pairs of a direction, whichever way round they are stored."""
        load = partial(load_tokens, prefix, dictionary=self.dictionary, impl=self.cfg.dataset_impl)
        return ParallelCorpus(
            str(pair),
            prepend(load(pair.src), self.source_prefix("mt", pair)),
            prepend(load(pair.tgt), self.target_prefix(pair)),
        )

    def _monolingual_corpora(
        self, name: str, directory: Path, split: str, required: bool
    ) -> list[Corpus]:
        build: Callable[[Path, str], Corpus] = partial(self._masked_corpus, name)
        if name not in MASKED:
            # Validation has the same noise throughout, or its losses would not compare.
            build = partial(self._denoising_corpus, self.noise_strength if required else None)
        wanted = comma_list(self.cfg.mono_langs)
        corpora: list[Corpus] = []
        for lang in wanted or monolingual_languages(directory, split):
            prefix = monolingual_prefix(directory, split, lang)
            if lang not in self.langs:
                raise UserError(
                    f"--mono-langs: {lang} is none of the languages {','.join(self.langs)}"
                )
            if prefix is not None:
                corpora.append(build(prefix, lang))
            elif required:
                raise UserError(
                    f"{directory} has no {split}.{lang}-None.{lang}.*: binarise it with "
                    f"fairseq-preprocess --only-source or drop {lang} from --mono-langs"
                )
        if required and not corpora:
            raise UserError(
                f"--multitask has {name}, but {directory} has no monolingual data "
                f"({split}.LANG-None.LANG.*): binarise some or drop {name}"
            )
        return corpora

    def _denoising_corpus(
        self, strength: Schedule | None, prefix: Path, lang: str
    ) -> DenoisingCorpus:
        pair = Pair(lang, lang)
        return DenoisingCorpus(
            lang,
            load_tokens(prefix, lang, self.dictionary, self.cfg.dataset_impl),
            noise=self.noise,
            starts_word=self.starts_word,
            mask=self.mask,
            eos=self.dictionary.eos(),
            source_prefix=self.source_prefix("dae", pair),
            target_prefix=self.target_prefix(pair),
            strength=strength,
        )

    def _masked_corpus(self, name: str, prefix: Path, lang: str) -> MaskedCorpus:
        return MaskedCorpus(
            lang,
            load_tokens(prefix, lang, self.dictionary, self.cfg.dataset_impl),
            masking=self.masking[name],
            starts_word=self.starts_word,
            ordinary=self.ordinary,
            mask=self.mask,
            eos=self.dictionary.eos(),
            pad=self.dictionary.pad(),
            source_prefix=self.source_prefix(name, Pair(lang, lang)),
        )

    def source_prefix(self, objective: str, pair: Pair) -> list[int]:
        """What `--objective-token` and `--encoder-langtok` put before the source."""
        symbols = [objective_token(objective)] if self.cfg.objective_token else []
        side = self.cfg.encoder_langtok
        if side is not None:
            symbols.append(language_token(pair.src if str(side) == "src" else pair.tgt))
        return [self.dictionary.index(symbol) for symbol in symbols]

    def target_prefix(self, pair: Pair) -> list[int]:
        """What `--decoder-langtok` puts before the target."""
        if not self.cfg.decoder_langtok:
            return []
        return [self.dictionary.index(language_token(pair.tgt))]
