"""Corpora of single languages: what is drawn, and files that cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary, ListDataset
from fairseq.data.indexed_dataset import IndexedDatasetBuilder

from zcode_plugin.data.corpora import DenoisingCorpus, MaskedCorpus, load_tokens
from zcode_plugin.data.masking import Masking
from zcode_plugin.data.noise import Noise
from zcode_plugin.data.words import WordPieces

EVERY = WordPieces(np.ones(40, dtype=bool), np.zeros(40, dtype=bool))


def corpora() -> list[DenoisingCorpus | MaskedCorpus]:
    """Two sentences of 20 words and the end, which is 2, with two tokens before each source."""
    rows = [torch.tensor([*range(5, 25), 2]), torch.tensor([*range(15, 35), 2])]
    tokens = ListDataset(rows, [21, 21])
    settings = {"pieces": EVERY, "mask": 4, "eos": 2, "source_prefix": (37, 38)}
    ordinary = np.arange(5, 35)
    return [
        DenoisingCorpus("aa", tokens, Noise(delete=0.0), target_prefix=(39,), **settings),
        MaskedCorpus("aa", tokens, Masking(), ordinary=ordinary, pad=1, **settings),
    ]


@pytest.mark.parametrize("corpus", corpora(), ids=lambda corpus: type(corpus).__name__)
def test_what_is_drawn_follows_from_the_key(corpus: DenoisingCorpus | MaskedCorpus) -> None:
    first, again, other = (corpus.example(0, key)["source"] for key in ((1, 7), (1, 7), (1, 8)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first[:2].tolist() == [37, 38]
    assert first[-1] == 2


@pytest.mark.parametrize("corpus", corpora(), ids=lambda corpus: type(corpus).__name__)
def test_sizes_are_those_of_examples(corpus: DenoisingCorpus | MaskedCorpus) -> None:
    for row, (source, target) in enumerate(zip(corpus.src_sizes, corpus.tgt_sizes, strict=True)):
        example = corpus.example(row, (1,))
        assert (len(example["source"]), len(example["target"])) == (source, target)


def test_each_process_seeks_in_a_file_of_its_own(tmp_path: Path) -> None:
    """Workers are forked after the first batch is read: they would move each other's position."""
    builder = IndexedDatasetBuilder(f"{tmp_path}/train.bin")
    rows = [torch.arange(4, 5 + row) for row in range(5)]
    for row in rows:
        builder.add_item(row)
    builder.finalize(f"{tmp_path}/train.idx")
    dataset = load_tokens(tmp_path / "trai", "n", Dictionary(), None)
    assert torch.equal(dataset[1], rows[1])
    place = dataset.data_file.tell()  # type: ignore[attr-defined]
    child = os.fork()
    if not child:
        os._exit(int(not torch.equal(dataset[4], rows[4])))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert dataset.data_file.tell() == place  # type: ignore[attr-defined]
    assert torch.equal(dataset[2], rows[2])
