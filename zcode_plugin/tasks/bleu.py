"""BLEU in validation: `--eval-bleu` and its companions, as stock's task `translation` has them."""

# No postponed annotations: fairseq builds its parser from the types of the fields.
import json
import logging
from argparse import Namespace
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Optional

import numpy as np
from fairseq import metrics
from fairseq.data import Dictionary, encoders
from fairseq.dataclass import FairseqDataclass
from fairseq.utils import item, strip_pad
from sacrebleu import corpus_bleu
from sacrebleu.metrics.bleu import BLEU, MAX_NGRAM_ORDER, BLEUScore
from torch import Tensor

from zcode_plugin.errors import UserError
from zcode_plugin.flags import comma_list

logger = logging.getLogger(__name__)

_COUNTS = ("correct", "total")  # one for each n-gram order
_LENGTHS = ("sys_len", "ref_len")


@dataclass
class EvalBleuConfig(FairseqDataclass):
    """Flags of generation in validation."""

    eval_bleu: bool = field(
        default=False,
        metadata={
            "help": "translate the validation data of mt, too, and log BLEU of each direction "
            "(mt_bleu_SRC-TGT) and their mean (bleu)"
        },
    )
    eval_bleu_pairs: Optional[str] = field(
        default=None,
        metadata={"help": "comma-separated directions to translate (default: all of mt)"},
    )
    eval_bleu_args: Optional[str] = field(
        default="{}",
        metadata={
            "help": "generation options as JSON, such as "
            '\'{"beam": 4, "max_len_a": 1.2, "max_len_b": 10}\''
        },
    )
    eval_bleu_detok: str = field(
        default="space",
        metadata={"help": "detokenizer of fairseq (such as moses); space leaves text as it is"},
    )
    eval_bleu_detok_args: Optional[str] = field(
        default="{}", metadata={"help": "options of the detokenizer as JSON"}
    )
    eval_tokenized_bleu: bool = field(
        default=False, metadata={"help": "BLEU over tokens as they are, without sacreBLEU's own"}
    )
    eval_bleu_remove_bpe: Optional[str] = field(
        default=None,
        metadata={
            "help": "what to take out to join subwords, such as sentencepiece (default: nothing)",
            "argparse_const": "@@ ",
        },
    )
    eval_bleu_print_samples: bool = field(
        default=False, metadata={"help": "log the first translation of each batch"}
    )


class BleuEvaluation:
    """Translates validation batches and adds up what BLEU is computed from.

    The counts of all batches and ranks add up to those of the whole corpus, so that the score does
    not depend on how the data was split.

    Args:
        cfg: see `EvalBleuConfig`.
        dictionary: of the target side.
        directions: names of all directions, the same on all ranks.

    Attributes:
        arguments: what `build_generator` gets.
        directions: those that are translated.

    Raises:
        UserError: a direction that is none of them, options that are no JSON object, or an
            unknown detokenizer.
    """

    def __init__(self, cfg: EvalBleuConfig, dictionary: Dictionary, directions: Sequence[str]):
        self.cfg = cfg
        self.dictionary = dictionary
        chosen = comma_list(cfg.eval_bleu_pairs)
        for name in chosen:
            if name not in directions:
                raise UserError(
                    f"--eval-bleu-pairs: {name} is none of the directions {', '.join(directions)}"
                )
        self.directions = chosen or list(directions)
        self.arguments = Namespace(**_json(cfg.eval_bleu_args, "--eval-bleu-args"))
        detok_args = _json(cfg.eval_bleu_detok_args, "--eval-bleu-detok-args")
        try:
            self.tokenizer = encoders.build_tokenizer(
                Namespace(tokenizer=cfg.eval_bleu_detok, **detok_args)
            )
        except (AssertionError, ImportError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"--eval-bleu-detok {cfg.eval_bleu_detok}: {error}") from None

    def select(self, batch: dict[str, Any]) -> dict[str, Any] | None:
        """The sentences of a batch of mt that are to be translated; None when there are none."""
        rows = [i for i, direction in enumerate(batch["corpora"]) if direction in self.directions]
        if len(rows) == len(batch["corpora"]):
            return batch if rows else None
        if not rows:
            return None
        net_input = {name: value[rows] for name, value in batch["net_input"].items()}
        return {
            "id": batch["id"][rows],
            "net_input": net_input,
            "target": batch["target"][rows],
            "corpora": [batch["corpora"][row] for row in rows],
        }

    def logs(
        self, hypotheses: list[Any], batch: dict[str, Any] | None, ignore: set[int]
    ) -> dict[str, int]:
        """Counts of a batch for each direction, zeros where it holds none of it.

        Args:
            hypotheses: what the generator returned for the batch.
            batch: of mt, with the direction of each sentence as `corpora`; None for no batch.
            ignore: tokens that are no text, such as language tokens.
        """
        texts: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for place, direction in enumerate(batch["corpora"] if batch else ()):
            assert batch is not None
            target = strip_pad(batch["target"][place], self.dictionary.pad())
            pair = texts[direction]
            pair[0].append(self._text(hypotheses[place][0]["tokens"], "UNKNOWNTOKENINHYP", ignore))
            pair[1].append(self._text(target, "UNKNOWNTOKENINREF", ignore))
        if texts and self.cfg.eval_bleu_print_samples:
            first = texts[batch["corpora"][0]]  # type: ignore[index]
            logger.info("example hypothesis: %s", first[0][0])
            logger.info("example reference: %s", first[1][0])
        logs = {}
        for direction in self.directions:
            for name, value in self._counts(*texts[direction]).items():
                logs[f"_mt_bleu_{direction}_{name}"] = value
        return logs

    def _text(self, tokens: Tensor, unknown: str, ignore: set[int]) -> str:
        # An unknown token must match nothing, whichever side it is on.
        text = self.dictionary.string(
            tokens.int().cpu(),
            self.cfg.eval_bleu_remove_bpe,
            unk_string=unknown,
            extra_symbols_to_ignore=ignore,
        )
        return self.tokenizer.decode(text) if self.tokenizer else text

    def _counts(self, hypotheses: list[str], references: list[str]) -> dict[str, int]:
        if not hypotheses:
            return dict.fromkeys([*_names(), *_LENGTHS], 0)
        options = {"tokenize": "none"} if self.cfg.eval_tokenized_bleu else {}
        score = corpus_bleu(hypotheses, [references], force=True, **options)
        counts = dict(zip(_names(), [*score.counts, *score.totals], strict=True))
        return {**counts, "sys_len": score.sys_len, "ref_len": score.ref_len}

    def reduce(self, logs: Sequence[dict[str, Any]]) -> None:
        """Log the BLEU of each direction, and as `bleu` the mean of those with references."""
        for direction in self.directions:
            prefix = f"_mt_bleu_{direction}_"

            def total(name: str, prefix: str = prefix) -> int:
                return int(sum(item(log.get(prefix + name, 0)) for log in logs))

            for kind in _COUNTS:
                counts = [total(f"{kind}_{order}") for order in range(MAX_NGRAM_ORDER)]
                metrics.log_scalar(prefix + kind, np.array(counts))
            for name in _LENGTHS:
                metrics.log_scalar(prefix + name, total(name))
            if total("ref_len"):
                metrics.log_derived(f"mt_bleu_{direction}", partial(_bleu, prefix=prefix))
        metrics.log_derived("bleu", self._mean)

    def _mean(self, meters: Any) -> float:
        scores = [
            _bleu(meters, f"_mt_bleu_{direction}_")
            for direction in self.directions
            if meters[f"_mt_bleu_{direction}_ref_len"].sum
        ]
        return round(float(np.mean(scores)), 2) if scores else 0.0


def _names() -> list[str]:
    return [f"{kind}_{order}" for kind in _COUNTS for order in range(MAX_NGRAM_ORDER)]


def _bleu(meters: Any, prefix: str) -> float:
    score: BLEUScore = BLEU.compute_bleu(
        correct=meters[f"{prefix}correct"].sum.tolist(),
        total=meters[f"{prefix}total"].sum.tolist(),
        sys_len=int(meters[f"{prefix}sys_len"].sum),
        ref_len=int(meters[f"{prefix}ref_len"].sum),
        smooth_method="exp",
    )
    return round(score.score, 2)


def _json(text: Optional[str], flag: str) -> dict[str, Any]:
    try:
        options = json.loads(text or "{}")
    except json.JSONDecodeError:
        options = None
    if not isinstance(options, dict):
        raise UserError(f"""{flag} {text} is no JSON object: write it as '{{"beam": 4}}'""")
    return options
