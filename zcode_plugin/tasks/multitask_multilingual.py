"""The fairseq task `multitask_multilingual`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fairseq import utils
from fairseq.data import Dictionary, FairseqDataset, LanguagePairDataset, ListDataset
from fairseq.tasks import FairseqTask, register_task
from torch import Tensor

from zcode_plugin.checkpoint.vocabulary import check_same, symbols_of
from zcode_plugin.data.collating import Collater
from zcode_plugin.data.corpora import prepend
from zcode_plugin.data.languages import (
    add_special_symbols,
    dictionary_of,
    find_dictionary,
    resolve_languages,
)
from zcode_plugin.data.multitask_dataset import MultitaskDataset, Stream
from zcode_plugin.data.objectives import KNOWN, parse_objectives, parse_token_budgets
from zcode_plugin.data.pairs import Pair, all_pairs, pair_prefix
from zcode_plugin.data.symbols import language_token, objective_token
from zcode_plugin.errors import UserError, exits_on_user_error
from zcode_plugin.flags import comma_list
from zcode_plugin.open_files import allow_open_files
from zcode_plugin.parallel.topology import world_size
from zcode_plugin.tasks.bleu import BleuEvaluation
from zcode_plugin.tasks.config import (
    MultitaskMultilingualConfig,
    sampling_weights,
    temperature,
)
from zcode_plugin.tasks.loading import CorpusLoader
from zcode_plugin.tasks.training import TrainingTask
from zcode_plugin.tasks.validation_checks import check_validation


@register_task("multitask_multilingual", dataclass=MultitaskMultilingualConfig)
class MultitaskMultilingualTask(TrainingTask):
    """Several objectives on many languages, in one model with one shared dictionary.

    Training batches map each objective's name to a batch of it, see `MultitaskDataset`. With `-s`
    and `-t` the task is that of one direction, for translation.

    Args:
        cfg: the options.
        dictionary: shared by all languages, language tokens and mask included.
        langs: all languages, in the order that numbers their tokens.
        pairs: directions of the objective mt.
    """

    def __init__(
        self,
        cfg: MultitaskMultilingualConfig,
        dictionary: Dictionary,
        langs: list[str],
        pairs: list[Pair],
    ):
        super().__init__(cfg)
        self.dictionary = dictionary
        self.langs = langs
        self.pairs = pairs
        self.objectives = parse_objectives(cfg.multitask)
        self.token_budgets = parse_token_budgets(cfg.multitask_max_tokens, self.objectives)
        self.direction = _direction(cfg)
        self.temperature = temperature(cfg)
        self.sampling_weights = sampling_weights(cfg)
        self.loader = CorpusLoader(cfg, dictionary, langs, pairs)
        if cfg.eval_bleu and self.direction is None:
            if "mt" not in {objective.name for objective in self.objectives}:
                raise UserError("--eval-bleu needs mt in --multitask")
            self.bleu = BleuEvaluation(cfg, dictionary, [str(pair) for pair in pairs])

    @classmethod
    @exits_on_user_error
    def setup_task(cls, cfg: MultitaskMultilingualConfig, **kwargs: Any) -> FairseqTask:
        """Find the languages, load and complete the dictionary.

        With `symbols`, those of a checkpoint in the order of their numbers, no folder is read:
        `--langs` are its languages.
        """
        allow_open_files()
        if str(cfg.dataset_impl) == "raw":
            raise UserError(
                "--dataset-impl raw: text is not read; binarise it with zcode prepare, or "
                "fairseq-preprocess without this option"
            )
        stated = [Pair.parse(text) for text in comma_list(cfg.lang_pairs)]
        if "symbols" in kwargs:
            return cls(cfg, dictionary_of(kwargs["symbols"]), comma_list(cfg.langs), stated)
        shards = [Path(path) for path in utils.split_paths(cfg.data)]
        for directory in shards:
            if not directory.is_dir():
                raise UserError(f"no data directory {directory}: make one with zcode prepare")
        directory = shards[0]
        pairs = stated or all_pairs(directory)
        direction = _direction(cfg)
        needed = [*pairs, direction] if direction else pairs
        if direction and (cfg.langs or cfg.lang_dict):
            needed = [direction]  # the folder may hold more than was trained on
        langs = resolve_languages(directory, comma_list(cfg.langs), cfg.lang_dict, needed)
        if not langs:
            raise UserError(f"{directory} holds no binarised pairs: name languages with --langs")
        dictionary = cls.load_dictionary(str(find_dictionary(shards, langs)))
        add_special_symbols(dictionary, langs, KNOWN if cfg.objective_token else ())
        return cls(cfg, dictionary, langs, pairs)

    @property
    def corpora(self) -> dict[str, list[str]]:
        """Names of all corpora that validation may see, by objective, where there are several."""
        names = {
            objective.name: [str(pair) for pair in self.pairs]
            if objective.name == "mt"
            else self.langs
            for objective in self.objectives
        }
        return {objective: found for objective, found in names.items() if len(found) > 1}

    @property
    def language_tokens(self) -> set[int]:
        return {self.dictionary.index(language_token(lang)) for lang in self.langs}

    @property
    def source_dictionary(self) -> Dictionary:
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        return self.dictionary

    def max_positions(self) -> tuple[int, int]:
        return self.cfg.max_source_positions, self.cfg.max_target_positions

    # Data

    @exits_on_user_error
    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any
    ) -> None:
        """Load a split: all objectives, or the one direction of a translation run."""
        shards = [Path(path) for path in utils.split_paths(self.cfg.data)]
        is_train = split == self.cfg.train_subset
        directory = shards[(epoch - 1) % len(shards)] if is_train else shards[0]
        if is_train and split not in self.datasets:
            names = [objective.name for objective in self.objectives]
            self.loader.check_shards(names, shards, split, self.sampling_weights)
        if self.direction is not None:
            self.datasets[split] = self._direction_dataset(directory, split, self.direction)
            return
        streams = [
            Stream(
                objective.name,
                self.loader.corpora(objective.name, directory, split, required=is_train),
                self.temperature if is_train else None,
                self.token_budgets.get(objective.name),
                self.sampling_weights,
            )
            for objective in self.objectives
        ]
        if not is_train:
            streams = [stream for stream in streams if stream.corpora]
        if not streams:
            raise UserError(f"{directory} has no data of the split {split} for any objective")
        if self.bleu is not None:
            held = {corpus.name for one in streams if one.name == "mt" for corpus in one.corpora}
            if not held & {*self.bleu.directions}:
                raise UserError(
                    f"--eval-bleu: {directory} has no {split}.* of {','.join(self.bleu.directions)}"
                )
        collater = Collater(
            self.dictionary, self.cfg.left_pad_source, self.cfg.required_seq_len_multiple
        )
        self.datasets[split] = MultitaskDataset(
            streams,
            collater,
            collater.empty,
            seed=self.cfg.seed,
            joint=is_train,
            ranks=world_size(),
        )
        if not is_train and self.options is not None:
            check_validation(
                self.datasets[split], self.options, self.max_positions(), self.corpora,
                None if self.bleu is None else self.bleu.directions, f"{directory}/{split}",
            )  # fmt: skip

    # Translation

    def _direction_dataset(self, directory: Path, split: str, pair: Pair) -> LanguagePairDataset:
        prefix = pair_prefix(directory, split, pair)
        if prefix is None:
            raise UserError(
                f"{directory} has no {split}.{pair}.* nor {split}.{pair.reverse}.*: choose another "
                "--gen-subset or direction"
            )
        corpus = self.loader.parallel_corpus(prefix, pair)
        return self._pair_dataset(corpus.source, corpus.src_sizes, corpus.target, corpus.tgt_sizes)

    def _pair_dataset(
        self, source: Any, src_sizes: Any, target: Any = None, tgt_sizes: Any = None
    ) -> LanguagePairDataset:
        return LanguagePairDataset(
            source,
            src_sizes,
            self.dictionary,
            target,
            tgt_sizes,
            self.dictionary,
            left_pad_source=self.cfg.left_pad_source,
            left_pad_target=False,
        )

    @exits_on_user_error
    def build_dataset_for_inference(
        self, src_tokens: list[Tensor], src_lengths: list[int], **kwargs: Any
    ) -> FairseqDataset:
        """Sentences of `fairseq-interactive`, without targets."""
        prefix = self.loader.source_prefix("mt", self._required_direction())
        source = prepend(ListDataset(src_tokens, np.asarray(src_lengths)), prefix)
        return self._pair_dataset(source, source.sizes)  # type: ignore[attr-defined]

    def _required_direction(self) -> Pair:
        if self.direction is None:
            raise UserError("translation needs a direction: give --source-lang and --target-lang")
        return self.direction

    @exits_on_user_error
    def build_generator(
        self,
        models: list[Any],
        args: Any,
        seq_gen_cls: Any = None,
        extra_gen_cls_kwargs: dict[str, Any] | None = None,
        prefix_allowed_tokens_fn: Any = None,
    ) -> Any:
        """fairseq's generator, which leaves the language token out of its output."""
        if getattr(args, "constraints", None):
            raise UserError("--constraints is not supported by multitask_multilingual: drop it")
        prefix = self.loader.target_prefix(self._required_direction())
        extra = dict(extra_gen_cls_kwargs or {})
        if prefix and not self.cfg.keep_inference_langtok:
            extra["symbols_to_strip_from_output"] = {*prefix}
        return super().build_generator(models, args, seq_gen_cls, extra, prefix_allowed_tokens_fn)

    def inference_step(
        self,
        generator: Any,
        models: list[Any],
        sample: dict[str, Any],
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
    ) -> Any:
        """Translate a batch; the target's language token is forced first."""
        prefix = self.loader.target_prefix(self._required_direction())
        if prefix_tokens is None and prefix:
            source = sample["net_input"]["src_tokens"]
            prefix_tokens = source.new_tensor([prefix] * source.size(0))
        return super().inference_step(generator, models, sample, prefix_tokens, constraints)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What later runs must agree with, and what rows and the optimizer's numbers stand for."""
        return {
            "symbols": "\n".join(self.dictionary.symbols),  # no symbol has a line break
            "langs": self.langs,
            "lang_pairs": [str(pair) for pair in self.pairs],
            "parameters": self.trained_parameters,
        }

    @exits_on_user_error
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint whose languages or symbols have other numbers than this run's."""
        langs = state_dict.get("langs", self.langs)
        if langs != self.langs:
            raise UserError(
                f"the checkpoint's languages are {','.join(langs)}, this run's are "
                f"{','.join(self.langs)}: give --langs {','.join(langs)}"
            )
        saved = symbols_of({"task_state": state_dict}) or ()
        check_same(
            {"task_state": state_dict},
            self.dictionary.symbols,
            "the checkpoint",
            "give --objective-token, with which it was trained"
            if objective_token("mt") in saved and not self.cfg.objective_token
            else "name a folder with the dictionary that it was trained with",
        )


def _direction(cfg: MultitaskMultilingualConfig) -> Pair | None:
    """The direction of a translation run, None in training."""
    if cfg.source_lang and cfg.target_lang:
        return Pair(cfg.source_lang, cfg.target_lang)
    if cfg.source_lang or cfg.target_lang:
        raise UserError("--source-lang and --target-lang belong together: give both or none")
    return None
