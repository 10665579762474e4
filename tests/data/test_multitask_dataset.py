"""Joint batches: a part of each objective in each, drawn anew each epoch, repeatable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from zcode_plugin.data.multitask_dataset import MultitaskDataset, Stream
from zcode_plugin.data.sampling import Temperature


class Numbered:
    """Sentences of known lengths; an example shows its row and its noise key."""

    def __init__(self, name: str, sizes: list[int]):
        self.name = name
        self.src_sizes = self.tgt_sizes = np.array(sizes)

    def __len__(self) -> int:
        return len(self.src_sizes)

    def start_epoch(self, epoch: int) -> None:
        pass

    def example(self, row: int, key: tuple[int, ...]) -> dict[str, Any]:
        return {"source": torch.tensor([row]), "target": torch.tensor(key)}


def collate(objective: str, samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": torch.tensor([sample["id"] for sample in samples]),
        "rows": sorted(int(sample["source"][0]) for sample in samples),
        "keys": sorted(tuple(sample["target"].tolist()) for sample in samples),
    }


def build(
    joint: bool = True, temperature: float | None = 1.0, ranks: int = 1, **sizes: list[int]
) -> Any:
    streams = [
        Stream(
            name,
            [Numbered(name, lengths)],
            None if temperature is None else Temperature(temperature),
        )
        for name, lengths in sizes.items()
    ]
    return MultitaskDataset(
        streams, collate, lambda _: {"ntokens": 0}, seed=1, joint=joint, ranks=ranks
    )


def batches(dataset: MultitaskDataset, max_tokens: int = 40) -> list[dict[str, Any]]:
    sampler = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=max_tokens)
    made = [dataset.collater([dataset[index] for index in batch]) for batch in sampler]
    # Without the tensors of ids: equality of batches is equality of rows and keys.
    return [
        {name: {key: part[key] for key in ("rows", "keys")} for name, part in batch.items()}
        for batch in made
    ]


def test_every_batch_holds_every_objective_and_each_row_comes_once() -> None:
    made = batches(build(mt=[5] * 64, dae=[5] * 64))
    assert len(made) == 8
    for batch in made:
        assert list(batch) == ["mt", "dae"]
    for name in ("mt", "dae"):
        assert sorted(row for batch in made for row in batch[name]["rows"]) == list(range(64))


def test_the_first_objective_makes_the_epoch() -> None:
    long, short = [5] * 64, [5] * 16
    assert len(batches(build(mt=long, dae=short))) == 8
    assert len(batches(build(mt=short, dae=long))) == 2


def test_a_repeated_example_gets_fresh_noise() -> None:
    made = batches(build(mt=[5] * 64, dae=[5] * 16))
    keys = [key for batch in made for key in batch["dae"]["keys"]]
    assert len(keys) == 64
    assert len(set(keys)) == 64


def test_an_example_may_come_any_number_of_times() -> None:
    dataset = build(mt=[1] * 66_000, dae=[1])
    sampler = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=1, max_sentences=1)
    assert len(sampler) == 66_000
    batch = dataset.collater([dataset[index] for index in sampler[-1]])
    assert list(batch) == ["mt", "dae"]


def test_an_epoch_repeats_itself_and_differs_from_others() -> None:
    dataset = build(mt=list(range(1, 40)), dae=list(range(1, 40)))
    first = batches(dataset)
    dataset.set_epoch(2)
    second = batches(dataset)
    dataset.set_epoch(1)
    assert batches(dataset) == first
    assert second != first
    assert batches(build(mt=list(range(1, 40)), dae=list(range(1, 40)))) == first


def test_every_draw_is_one_of_the_epoch() -> None:
    """Rows, noise, the order of sentences, and that of batches: each by itself."""
    corpora = [Numbered("large", [5] * 64), Numbered("small", [5] * 16)]
    streams = [Stream("mt", corpora, Temperature(5.0)), Stream("dae", corpora, Temperature(5.0))]
    dataset = MultitaskDataset(streams, collate, lambda _: {"ntokens": 0}, seed=1, joint=True)
    assert not dataset.can_reuse_epoch_itr_across_epochs
    indices = dataset.ordered_indices()

    def draws() -> list[list[int]]:
        packed = dataset.batch_by_size(indices, max_tokens=40)
        return [
            dataset.streams[0].row_of.tolist(),
            dataset[7]["target"].tolist(),
            dataset.ordered_indices().tolist(),
            np.concatenate(packed).tolist(),
        ]

    first = draws()
    dataset.set_epoch(2)
    assert all(one != other for one, other in zip(first, draws(), strict=True))
    dataset.set_epoch(1)
    assert draws() == first


def test_batches_of_all_lengths_come_in_random_order() -> None:
    made = batches(build(mt=[*range(1, 65)], dae=[*range(1, 65)]))
    for name in ("mt", "dae"):
        shortest = [min(batch[name]["rows"]) for batch in made if batch[name]["rows"]]
        assert shortest != sorted(shortest)


def test_both_sides_count_in_lengths() -> None:
    corpus = Numbered("aa-bb", [2] * 8)
    corpus.tgt_sizes = np.array([9, 3, 9, 3, 9, 3, 9, 3])
    dataset = MultitaskDataset([Stream("mt", [corpus], None)], collate, dict, seed=1, joint=False)
    rows = dataset.ordered_indices()
    assert sorted(rows[:4].tolist()) == [1, 3, 5, 7]
    assert [len(one) for one in dataset.batch_by_size(rows, max_tokens=18)] == [4, 2, 2]
    kept, left_out = dataset.filter_indices_by_size(rows, (5, 5))
    assert (sorted(kept.tolist()), sorted(left_out)) == ([1, 3, 5, 7], [0, 2, 4, 6])


def test_an_objective_keeps_its_batches_whatever_stands_beside_it() -> None:
    sizes = list(range(1, 40))
    alone = batches(build(mt=sizes))
    beside = batches(build(mt=sizes, dae=sizes, mlm=[3] * 50))
    assert [batch["mt"] for batch in beside] == [batch["mt"] for batch in alone]


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        (1, "mt dae mt mt mt dae mt"),
        (2, "mt mt mt mt dae dae mt"),
        (8, "mt mt mt mt mt dae dae"),
    ],
)
def test_validation_batches_hold_one_objective_and_the_first_ones_a_part_of_all(
    ranks: int, expected: str
) -> None:
    """`--max-valid-steps` takes the first ones of each rank."""
    made = batches(build(joint=False, ranks=ranks, temperature=None, mt=[5] * 40, dae=[5] * 16))
    assert [list(batch) for batch in made] == [[name] for name in expected.split()]
    rows = {name: [row for one in made for row in one.get(name, {"rows": ()})["rows"]]
            for name in ("mt", "dae")}  # fmt: skip
    assert {name: sorted(found) for name, found in rows.items()} == {
        "mt": [*range(40)], "dae": [*range(16)],
    }  # fmt: skip


def test_batches_keep_to_the_limits() -> None:
    dataset = build(mt=[3, 9, 5, 7, 2, 8] * 5)
    sampler = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=20, max_sentences=3)
    for batch in sampler:
        sizes = [dataset.size(index)[0] for index in batch]
        assert len(sizes) <= 3
        assert len(sizes) * max(sizes) <= 20


def test_an_objective_may_have_a_limit_of_its_own() -> None:
    streams = [
        Stream("mt", [Numbered("mt", [5] * 64)], Temperature(1.0)),
        Stream("dae", [Numbered("dae", [5] * 64)], Temperature(1.0), max_tokens=20),
    ]
    dataset = MultitaskDataset(streams, collate, lambda _: {}, seed=1, joint=True)
    for batch in batches(dataset):
        assert len(batch["mt"]["rows"]) == 8
        assert len(batch["dae"]["rows"]) == 4


def test_sentences_longer_than_a_batch_are_left_out() -> None:
    made = batches(build(mt=[5, 50, 5]))
    assert sorted(row for batch in made for row in batch["mt"]["rows"]) == [0, 2]


def test_too_long_sentences_are_filtered() -> None:
    dataset = build(mt=[3, 30, 5], dae=[40, 2])
    kept, ignored = dataset.filter_indices_by_size(dataset.ordered_indices(), (20, 20))
    assert [dataset.size(index) for index in ignored] == [(30, 30), (40, 40)]
    assert sorted(dataset.size(index)[0] for index in kept) == [2, 3, 5]
    assert len(dataset.filter_indices_by_size(kept, None)[0]) == 3


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_corpora_share_an_epoch_by_temperature(temperature: float) -> None:
    corpora = [Numbered("large", [4] * 900), Numbered("small", [4] * 100)]
    stream = Stream("mt", corpora, Temperature(temperature))
    stream.draw(seed=1, epoch=1)
    share = np.bincount(stream.corpus_of) / 1000
    expected = 900 ** (1 / temperature) / (900 ** (1 / temperature) + 100 ** (1 / temperature))
    assert share[0] == pytest.approx(expected, abs=0.001)


def test_the_share_of_an_epoch_follows_a_temperature_that_changes() -> None:
    corpora = [Numbered("large", [4] * 9000), Numbered("small", [4] * 1000)]
    stream = Stream("mt", corpora, Temperature(1.0, 5.0, epochs=3))
    shares = []
    for epoch in (1, 2, 3, 4):
        stream.draw(seed=1, epoch=epoch)
        shares.append((stream.corpus_of == 1).sum() / 10_000)
    small = [1000 ** (1 / t) / (1000 ** (1 / t) + 9000 ** (1 / t)) for t in (1, 3, 5, 5)]
    assert shares == pytest.approx(small, abs=0.0001)


def test_weights_are_factors_of_the_shares() -> None:
    corpora = [Numbered(name, [4] * size) for name, size in (("a", 600), ("b", 300), ("c", 100))]
    stream = Stream("mt", corpora, Temperature(1.0), weights={"b": 2, "c": 0.5})
    stream.draw(seed=1, epoch=1)
    shares = np.bincount(stream.corpus_of) / 1000
    assert shares == pytest.approx([600 / 1250, 600 / 1250, 50 / 1250], abs=0.001)


def test_a_rank_without_a_batch_gets_one_without_targets() -> None:
    empty = {"ntokens": 0, "corpora": []}
    assert build(mt=[5], dae=[5]).collater([]) == {"mt": empty, "dae": empty}
    assert build(joint=False, mt=[5], dae=[5]).collater([]) == {"mt": empty}


def test_sentences_know_their_corpus() -> None:
    corpora = [Numbered("aa-bb", [5] * 3), Numbered("bb-aa", [5] * 3)]
    dataset = MultitaskDataset(
        [Stream("mt", corpora, None)], collate, lambda _: {}, seed=1, joint=False
    )
    batch = dataset.collater([dataset[index] for index in (0, 4, 2)])["mt"]
    assert batch["corpora"] == ["aa-bb", "bb-aa", "aa-bb"]
