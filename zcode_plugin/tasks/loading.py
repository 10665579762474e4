"""Loads the corpora of a split, with language tokens in their places."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
from fairseq.data import Dictionary
from torch.utils.data import Dataset

from zcode_plugin.data.corpora import (
    Corpus,
    DenoisingCorpus,
    MaskedCorpus,
    ParallelCorpus,
    load_tokens,
    ordinary_tokens,
    prepend,
)
from zcode_plugin.data.objectives import KNOWN, MASKED
from zcode_plugin.data.pairs import Pair, monolingual_languages, monolingual_prefix, pair_prefix
from zcode_plugin.data.schedules import Schedule
from zcode_plugin.data.symbols import MASK, language_token, objective_token
from zcode_plugin.data.words import WordPieces
from zcode_plugin.errors import UserError
from zcode_plugin.flags import comma_list
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
        self._opened: WeakValueDictionary[str, Dataset] = WeakValueDictionary()

    # Passes over the vocabulary: once for all corpora, and not at all for translation.

    @cached_property
    def pieces(self) -> WordPieces:
        """How they make words."""
        return WordPieces.of(self.dictionary)

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
            found = self._find_pairs(directory, split, required)
            return [self.parallel_corpus(prefix, pair) for pair, prefix in found.items()]
        build: Callable[[Path, str], Corpus] = partial(self._masked_corpus, name)
        if name not in MASKED:
            # Validation has the same noise throughout, or its losses would not compare.
            build = partial(self._denoising_corpus, self.noise_strength if required else None)
        languages = self._find_languages(name, directory, split, required)
        return [build(prefix, lang) for lang, prefix in languages.items()]

    def check_shards(
        self, objectives: Sequence[str], shards: Sequence[Path], split: str, named: Iterable[str]
    ) -> None:
        """Look for the training data of all epochs before the first, reading none.

        Args:
            objectives: names.
            shards: folders, one for each epoch in turn.
            split: of training.
            named: corpora that are to be there.

        Raises:
            UserError: data that is asked for is missing, or a name is of none.
        """
        known: dict[str, None] = {}
        for shard, name in product(shards, objectives):
            find = self._find_pairs if name == "mt" else partial(self._find_languages, name)
            known |= dict.fromkeys(map(str, find(shard, split, required=True)))
        for name in named:
            if name not in known:
                raise UserError(
                    f"--sampling-weights: {name} is none of the corpora {', '.join(known)}"
                )

    def _find_pairs(self, directory: Path, split: str, required: bool) -> dict[Pair, Path]:
        found = {}
        for pair in self.pairs:
            prefix = pair_prefix(directory, split, pair)
            if prefix is not None:
                found[pair] = prefix
            elif required:
                raise UserError(
                    f"{directory} has no {split}.{pair}.* nor {split}.{pair.reverse}.*: binarise "
                    f"the pair or drop {pair} from --lang-pairs"
                )
        if required and not found:
            raise UserError(f"{directory} has no parallel data of the split {split}")
        return found

    def parallel_corpus(self, prefix: Path, pair: Pair) -> ParallelCorpus:
        """Sentence pairs of a direction, whichever way round they are stored."""
        return ParallelCorpus(
            str(pair),
            prepend(self._tokens(prefix, pair.src), self.source_prefix("mt", pair)),
            prepend(self._tokens(prefix, pair.tgt), self.target_prefix(pair)),
        )

    def _tokens(self, prefix: Path, lang: str) -> Dataset:
        """Opened once for all directions and objectives: each file takes descriptors."""
        key = f"{prefix}{lang}"
        dataset = self._opened.get(key)
        if dataset is None:
            dataset = load_tokens(prefix, lang, self.dictionary, self.cfg.dataset_impl)
            self._opened[key] = dataset
        return dataset

    def _find_languages(
        self, name: str, directory: Path, split: str, required: bool
    ) -> dict[str, Path]:
        wanted = comma_list(self.cfg.mono_langs)
        found = {}
        for lang in wanted or monolingual_languages(directory, split):
            prefix = monolingual_prefix(directory, split, lang)
            if lang not in self.langs:
                of_data = f"{directory} has monolingual text of {lang}, which"
                start = f"--mono-langs: {lang}" if wanted else of_data
                remedy = "" if wanted else ": add it to --langs, or name others with --mono-langs"
                raise UserError(f"{start} is none of the languages {','.join(self.langs)}{remedy}")
            if prefix is not None:
                found[lang] = prefix
            elif required:
                raise UserError(
                    f"{directory} has no {split}.{lang}-None.{lang}.*: binarise it with "
                    f"fairseq-preprocess --only-source or drop {lang} from --mono-langs"
                )
        if required and not found:
            raise UserError(
                f"--multitask has {name}, but {directory} has no monolingual data "
                f"({split}.LANG-None.LANG.*): binarise some or drop {name}"
            )
        return found

    def _denoising_corpus(
        self, strength: Schedule | None, prefix: Path, lang: str
    ) -> DenoisingCorpus:
        pair = Pair(lang, lang)
        return DenoisingCorpus(
            lang,
            self._tokens(prefix, lang),
            noise=self.noise,
            pieces=self.pieces,
            mask=self.mask,
            eos=self.dictionary.eos(),
            source_prefix=self.source_prefix("dae", pair),
            target_prefix=self.target_prefix(pair),
            strength=strength,
        )

    def _masked_corpus(self, name: str, prefix: Path, lang: str) -> MaskedCorpus:
        return MaskedCorpus(
            lang,
            self._tokens(prefix, lang),
            masking=self.masking[name],
            pieces=self.pieces,
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
