"""Batches of one objective, from examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.data.language_pair_dataset import collate

from zcode_plugin.data.objectives import MASKED


@dataclass(frozen=True)
class Collater:
    """Pads and stacks examples as fairseq's `LanguagePairDataset` does.

    A batch of `mlm` or `electra` has no decoder's input. `net_input.masked_tokens` is bool [B, S],
    True where a token is to be predicted, and `target` holds those tokens alone, in that order;
    `ntokens` is their number, `nplaces` that of all tokens.

    Attributes:
        dictionary: for padding and end of sentence.
        left_pad_source: pad the source on the left.
        multiple: lengths are padded to a multiple of this.
    """

    dictionary: Dictionary
    left_pad_source: bool = True
    multiple: int = 1

    def __call__(self, objective: str, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of `samples`, each with `id`, `source` and `target`."""
        is_masked = objective in MASKED
        batch: dict[str, Any] = collate(
            samples,
            pad_idx=self.dictionary.pad(),
            eos_idx=self.dictionary.eos(),
            left_pad_source=self.left_pad_source,
            # Source and target are the same places.
            left_pad_target=self.left_pad_source and is_masked,
            input_feeding=not is_masked,
            pad_to_multiple=self.multiple,
        )
        if is_masked:
            masked = batch["target"].ne(self.dictionary.pad())
            batch["net_input"].update(masked_tokens=masked, objective=objective)
            batch["nplaces"] = int(batch["net_input"]["src_lengths"].sum())
            batch["target"] = batch["target"][masked]
        return batch

    def empty(self, objective: str) -> dict[str, Any]:
        """A batch of one sentence without words, whose end is no target."""
        end = torch.tensor([self.dictionary.eos()])
        no_target = torch.full_like(end, self.dictionary.pad())
        target = no_target if objective in MASKED else end
        batch = self(objective, [{"id": 0, "source": end, "target": target}])
        nowhere = {"nplaces": 0} if objective in MASKED else {}
        batch["target"].fill_(self.dictionary.pad())
        return {**batch, "id": batch["id"][:0], "nsentences": 0, "ntokens": 0, **nowhere}
