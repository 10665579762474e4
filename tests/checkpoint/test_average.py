"""Averaged weights: the mean of each entry, in whatever layout the checkpoints are."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint.rank_files import State, rank_state, whole_model

from zcode_plugin.checkpoint import config, io
from zcode_plugin.checkpoint.average import (
    EPOCHS,
    UPDATES,
    average_ranks,
    average_whole,
    mean,
    newest,
)
from zcode_plugin.checkpoint.merge import merge
from zcode_plugin.errors import UserError

SHIFTS = (0.0, 1.0, 8.0)


def write(folder: Path, shift: float, size: int = 2, change: Callable | None = None) -> list[Path]:
    """A checkpoint with weights `shift` above the made-up ones, saved after as many updates."""
    files = []
    for rank in range(size):
        state = rank_state(rank, size)
        state["optimizer_history"][-1]["num_updates"] = int(shift)
        for tensors in (state["model"], state["extra_state"]["ema"]):
            for key, value in tensors.items():
                tensors[key] = value + shift
            tied = tensors["encoder.embed_tokens.weight"]
            tensors["decoder.output_projection.weight"] = tied
        state["model"]["buffer"] = torch.tensor(7)
        if change is not None:
            change(state)
        suffix = state["cfg"]["checkpoint"]["checkpoint_suffix"]
        files.append(folder / f"checkpoint{int(shift)}{suffix}.pt")
        torch.save(state, files[-1])
    return files


def assert_mean(model: dict[str, torch.Tensor]) -> None:
    assert model.pop("buffer") == 7
    for key, value in whole_model().items():
        torch.testing.assert_close(model[key], value + 3, atol=5e-3, rtol=0, msg=key)
        assert model[key].dtype == value.dtype, key
    tied = "encoder.embed_tokens.weight", "decoder.output_projection.weight"
    assert model[tied[0]].data_ptr() == model[tied[1]].data_ptr()


@pytest.mark.parametrize("sizes", [(2, 2, 2), (4, 2, 1), (1, 1, 1)])
def test_one_file(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    sets = [write(tmp_path, shift, size) for shift, size in zip(SHIFTS, sizes, strict=True)]
    state = average_whole(sets)
    assert_mean(state["model"])
    assert_mean({**state["extra_state"]["ema"], "buffer": 7})
    assert config.num_updates(state) == 8
    assert config.expert_parallel_size(state) == 1
    assert "last_optimizer_state" not in state


def test_the_newest_is_that_of_the_most_updates_whatever_the_order(tmp_path: Path) -> None:
    sets = [write(tmp_path, shift, size=1) for shift in (8.0, 0.0, 1.0)]
    assert config.num_updates(average_whole(sets)) == 8


def test_sums_are_in_double_precision() -> None:
    values = [{"weight": torch.tensor([value])} for value in (1e8, 1.0, -1e8)]
    assert mean(values, [Path()] * 3, 0)["weight"].item() == pytest.approx(1 / 3)


def test_rank_files_stay_rank_files(tmp_path: Path) -> None:
    sets = [write(tmp_path, shift) for shift in SHIFTS]
    out = tmp_path / "out"
    out.mkdir()
    files = {}
    for rank, state in enumerate(average_ranks(sets)):
        files[rank] = out / f"mean-rank-{rank}.pt"
        torch.save(state, files[rank])
        assert state["cfg"]["checkpoint"]["checkpoint_suffix"] == f"-rank-{rank}"
    merged, report = merge(files)  # which checks that they are of one save
    assert report.ranks == 2
    assert_mean(merged["model"])


def drop(state: State) -> None:
    del state["model"]["encoder.version"]


def grow(state: State) -> None:
    state["model"]["encoder.version"] = torch.zeros(2)


def count(state: State) -> None:
    state["model"]["buffer"] = torch.tensor(8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "{0} and {1} are of different models: only one has encoder.version"),
        (grow, "{0} and {1} are of different models: encoder.version is torch.float32 (1,) in one "
         "and torch.float32 (2,) in the other"),
        (count, "{0} and {1} are of different models: buffer is torch.int64 () in one and "
         "torch.int64 () in the other"),
    ],
)  # fmt: skip
def test_checkpoints_of_different_models(
    tmp_path: Path, change: Callable[[State], None], message: str
) -> None:
    sets = [write(tmp_path, 0, size=1), write(tmp_path, 8, size=1, change=change)]
    with pytest.raises(UserError) as refusal:
        average_whole(sets)
    assert str(refusal.value) == message.format(sets[0][0], sets[1][0])


def test_checkpoints_of_different_vocabularies(tmp_path: Path) -> None:
    def name(symbols: str, *langs: str) -> Callable[[State], None]:
        return lambda state: state["task_state"].update(symbols=symbols, langs=[*langs])

    one, two, three = (
        write(tmp_path, shift, 1, name(*given))
        for shift, given in enumerate(
            (("a\nb", "de", "en"), ("b\na", "de", "en"), ("a\nb", "en", "de"))
        )
    )
    with pytest.raises(UserError, match="number 0 is b, here a"):
        average_whole([one, two])
    with pytest.raises(UserError, match="have different languages, or another order"):
        average_whole([one, three])


def test_experts_that_pruning_numbered_otherwise(tmp_path: Path) -> None:
    def keep(*numbers: int) -> Callable[[State], None]:
        return lambda state: state.update(kept_experts={"encoder.layers.1": [*numbers]})

    same = [write(tmp_path, shift, 1, keep(0, 2)) for shift in (0, 1)]
    assert average_whole(same)["kept_experts"] == {"encoder.layers.1": [0, 2]}
    other = write(tmp_path, 8, 1, keep(0, 3))
    with pytest.raises(UserError) as refusal:
        average_whole([same[0], other])
    assert str(refusal.value) == (
        f"{other[0]} and {same[0][0]} keep different experts of encoder.layers.1: average first, "
        "then prune the mean"
    )


def test_a_set_whose_files_do_not_belong_together(tmp_path: Path) -> None:
    sets = [write(tmp_path, shift) for shift in SHIFTS]
    state = io.load(sets[1][1])
    state["model"]["encoder.version"] += 1
    torch.save(state, sets[1][1])
    with pytest.raises(UserError, match=r"encoder\.version differs from the same entry of another"):
        average_ranks(sets)


def test_sets_of_different_sizes_need_merging(tmp_path: Path) -> None:
    sets = [write(tmp_path, 0, size=2), write(tmp_path, 8, size=4)]
    with pytest.raises(UserError, match="of different numbers of ranks: add --merge"):
        average_ranks(sets)


def test_the_newest_of_a_folder(tmp_path: Path) -> None:
    for name in (
        *(f"checkpoint{epoch}-rank-{rank}.pt" for epoch in (8, 9, 10) for rank in range(2)),
        *("checkpoint_2_900.pt", "checkpoint_3_1000.pt", "checkpoint_last.pt"),
        *("checkpoint11.pt.tmp", "checkpoint.best_loss_3.1.pt"),
    ):
        (tmp_path / name).touch()
    names = [path.name for path in newest(tmp_path, EPOCHS, 2, None)]
    assert names == ["checkpoint9-rank-0.pt", "checkpoint10-rank-0.pt"]
    assert [path.name for path in newest(tmp_path, UPDATES, 1, 999)] == ["checkpoint_2_900.pt"]
    with pytest.raises(UserError, match="has checkpoints of 1 numbers of updates up to 999, not 2"):
        newest(tmp_path, UPDATES, 2, 999)
