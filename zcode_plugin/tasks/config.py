"""The options of the task `multitask_multilingual`.

Names and meanings are those of stock `translation_multi_simple_epoch` where it has the option.
"""

# No postponed annotations: fairseq builds its parser from the types of the fields.
from dataclasses import dataclass, field
from typing import Optional

from fairseq.data.indexed_dataset import get_available_dataset_impl
from fairseq.dataclass import ChoiceEnum
from omegaconf import II, MISSING

from zcode_plugin.data.masking import Masking
from zcode_plugin.data.noise import Noise
from zcode_plugin.data.sampling import Temperature
from zcode_plugin.data.schedules import Schedule, parse_schedule
from zcode_plugin.errors import UserError
from zcode_plugin.flags import comma_list
from zcode_plugin.tasks.bleu import EvalBleuConfig

_Langtok = ChoiceEnum(["src", "tgt"])
_Sampling = ChoiceEnum(["temperature", "uniform", "concat"])
_Normalization = ChoiceEnum(["objectives", "tokens"])
_Implementation = ChoiceEnum(get_available_dataset_impl())


@dataclass
class MultitaskMultilingualConfig(EvalBleuConfig):
    """Flags of the task."""

    data: str = field(
        default=MISSING,
        metadata={
            "help": "directory of binarised data; several, separated by colons, are shards: one "
            "an epoch, in turn; validation and test data come from the first"
        },
    )
    multitask: str = field(
        default="mt:1",
        metadata={
            "help": 'objectives and their weights, such as "mt:1,dae:0.5", or a weight that '
            'changes linearly between updates, "dae:0@0,1@4000": mt translates, dae restores '
            "noised monolingual text, mlm predicts masked words of it, electra finds words that a "
            "small generator replaced; the loss is the weighted sum of their means"
        },
    )
    multitask_normalization: _Normalization = field(  # type: ignore[valid-type]
        default="objectives",
        metadata={
            "help": "what the loss is a mean of: of each objective's own targets (objectives), or "
            "of all targets together (tokens), so that an objective weighs as its targets do"
        },
    )
    multitask_max_tokens: str = field(
        default="",
        metadata={
            "help": 'tokens of a batch for single objectives, such as "dae:1024" '
            "(default: --max-tokens for each)"
        },
    )
    lang_pairs: Optional[str] = field(
        default=None,
        metadata={
            "help": "comma-separated directions of mt, such as de-en,en-de (default: both "
            "directions of every pair that DATA holds)"
        },
    )
    langs: Optional[str] = field(
        default=None,
        metadata={
            "help": "comma-separated languages; their order numbers the language tokens "
            "(default: langs.txt in DATA, else the languages of the pairs, sorted)"
        },
    )
    lang_dict: Optional[str] = field(
        default=None, metadata={"help": "the same from a file, one language a line"}
    )
    mono_langs: Optional[str] = field(
        default=None,
        metadata={
            "help": "comma-separated languages of dae, mlm and electra (default: all with "
            "monolingual data in DATA)"
        },
    )
    source_lang: Optional[str] = field(
        default=None,
        metadata={"help": "source language of a translation run", "argparse_alias": "-s"},
    )
    target_lang: Optional[str] = field(
        default=None,
        metadata={"help": "target language of a translation run", "argparse_alias": "-t"},
    )
    encoder_langtok: Optional[_Langtok] = field(  # type: ignore[valid-type]
        default=None,
        metadata={"help": "put the token of the source or target language before the source"},
    )
    decoder_langtok: bool = field(
        default=False,
        metadata={"help": "put the token of the target language before the target"},
    )
    objective_token: bool = field(
        default=False,
        metadata={
            "help": "put a token of the objective before the source (and its language token); "
            "translation needs the flag, too"
        },
    )
    keep_inference_langtok: bool = field(
        default=False, metadata={"help": "leave the language token in translations"}
    )
    sampling_method: _Sampling = field(  # type: ignore[valid-type]
        default="concat",
        metadata={
            "help": "how directions, and languages of monolingual data, share an epoch: by size "
            "(concat), by size^(1/T) (temperature), or alike (uniform)"
        },
    )
    sampling_temperature: float = field(
        default=1.5, metadata={"help": "T of --sampling-method temperature"}
    )
    sampling_temperature_end: Optional[float] = field(
        default=None,
        metadata={"help": "let T change linearly to this (default: it stays)"},
    )
    sampling_temperature_epochs: int = field(
        default=5,
        metadata={"help": "the epoch from which on it is --sampling-temperature-end"},
    )
    sampling_weights: str = field(
        default="",
        metadata={
            "help": "factors of the shares of single directions, or of languages of monolingual "
            'data, whatever the method: "de-en:2,fr-en:0.5,de:3"'
        },
    )
    dae_mask: float = field(
        default=0.1, metadata={"help": "dae: probability that a word is replaced by a mask"}
    )
    dae_delete: float = field(
        default=0.1, metadata={"help": "dae: probability that a word is deleted"}
    )
    dae_shuffle_distance: float = field(
        default=3.0, metadata={"help": "dae: words move by less than this many places; 0 for none"}
    )
    dae_infill: float = field(
        default=0.0,
        metadata={"help": "dae: share of the words hidden in spans, one mask for each span"},
    )
    dae_span_length: float = field(
        default=3.0, metadata={"help": "dae: mean length of those spans, in words (Poisson)"}
    )
    dae_noise_schedule: str = field(
        default="",
        metadata={
            "help": "factor of all these rates and of the shuffle's distance by epoch, linear "
            'between those that are named: "0.2@1,1@5" (default: 1; validation always has 1)'
        },
    )
    mlm_mask: float = field(
        default=0.15,
        metadata={"help": "mlm, electra: probability that a word is chosen for prediction"},
    )
    mlm_random: float = field(
        default=0.1,
        metadata={"help": "mlm: share of the chosen tokens that a random one replaces"},
    )
    mlm_keep: float = field(
        default=0.1,
        metadata={"help": "mlm: share of them that stay; all others are masked"},
    )
    mlm_single_tokens: bool = field(
        default=False,
        metadata={"help": "mlm, electra: choose single tokens rather than whole words"},
    )
    left_pad_source: bool = field(
        default=True, metadata={"help": "do not pad the source on the left"}
    )
    max_source_positions: int = field(
        default=1024, metadata={"help": "longest source sequence, in tokens"}
    )
    max_target_positions: int = field(
        default=1024, metadata={"help": "longest target sequence, in tokens"}
    )
    distributed_timeout: float = field(
        default=600.0,
        metadata={
            "help": "seconds for which ranks wait for each other before the run ends; more than a "
            "rank takes to save a checkpoint (default: what torch has for NCCL)"
        },
    )
    check_replicas: int = field(
        default=0,
        metadata={
            "help": "every N updates compare the weights of ranks that hold the same ones, bit for "
            "bit, and end the run when they differ; 0 for never"
        },
    )
    dataset_impl: Optional[_Implementation] = field(  # type: ignore[valid-type]
        default=II("dataset.dataset_impl"), metadata={"help": "format of the binarised data"}
    )
    required_seq_len_multiple: int = II("dataset.required_seq_len_multiple")
    train_subset: str = II("dataset.train_subset")
    seed: int = II("common.seed")


# Functions rather than methods: fairseq hands the options on as a DictConfig, which has none.
def temperature(cfg: MultitaskMultilingualConfig) -> Temperature:
    """T of the sampling; uniform is the limit of a great T."""
    method, end = str(cfg.sampling_method), cfg.sampling_temperature_end
    if method != "temperature":
        if end is not None:
            raise UserError(
                f"--sampling-temperature-end {end} goes with --sampling-method temperature, which "
                f"is {method}: change one"
            )
        return Temperature(1.0 if method == "concat" else float("inf"))
    for flag, value in (
        ("--sampling-temperature", cfg.sampling_temperature),
        ("--sampling-temperature-end", end),
    ):
        # Below that the powers of sizes leave what floats can hold.
        if value is not None and not 0.05 <= value < float("inf"):
            raise UserError(
                f"{flag} {value} must be 0.05 or more; 1 keeps the proportions of the data, "
                "greater values level them"
            )
    if cfg.sampling_temperature_epochs < 2:
        raise UserError(
            f"--sampling-temperature-epochs {cfg.sampling_temperature_epochs} is too small: give "
            "at least 2"
        )
    return Temperature(cfg.sampling_temperature, end, cfg.sampling_temperature_epochs)


def sampling_weights(cfg: MultitaskMultilingualConfig) -> dict[str, float]:
    """Factors by direction or language."""
    weights: dict[str, float] = {}
    for item in comma_list(cfg.sampling_weights):
        name, _, number = item.partition(":")
        try:
            weights[name] = float(number)
        except ValueError:
            weights[name] = -1.0
        if not 0 < weights[name] < float("inf"):
            raise UserError(
                f"--sampling-weights: {item!r} is no NAME:FACTOR with a positive factor, such as "
                "de-en:2; to leave a direction out drop it from --lang-pairs"
            )
    return weights


def noise(cfg: MultitaskMultilingualConfig) -> Noise:
    """The noise of dae."""
    return Noise(
        shuffle_distance=cfg.dae_shuffle_distance,
        delete=cfg.dae_delete,
        infill=cfg.dae_infill,
        span_length=cfg.dae_span_length,
        mask=cfg.dae_mask,
    )


def noise_strength(cfg: MultitaskMultilingualConfig) -> Schedule | None:
    """The factor of dae's noise by epoch."""
    items = comma_list(cfg.dae_noise_schedule)
    if not items:
        return None
    where = f"--dae-noise-schedule {cfg.dae_noise_schedule!r}"
    schedule = parse_schedule(items, where, "FACTOR@EPOCH such as 0.5@3")
    for _, factor in schedule.milestones:
        try:
            noise(cfg).scaled(factor)
        except UserError as error:
            raise UserError(f"{where}: {factor:g} times the rates: {error}") from None
    return schedule


def masking(cfg: MultitaskMultilingualConfig, objective: str) -> Masking:
    """The masking of mlm or electra; electra masks all tokens that it chooses."""
    rates = (cfg.mlm_random, cfg.mlm_keep) if objective == "mlm" else (0.0, 0.0)
    return Masking(cfg.mlm_mask, *rates, whole_words=not cfg.mlm_single_tokens)
