"""Rank files merged: bit for bit what one process would have saved, or refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint.rank_files import LAYERS, State, rank_state, whole_model, write_rank_files
from fairseq import checkpoint_utils
from omegaconf import OmegaConf

from zcode_plugin.checkpoint import config, io
from zcode_plugin.checkpoint.merge import MergeReport, merge
from zcode_plugin.checkpoint.tensors import bit_equal
from zcode_plugin.errors import UserError


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.contiguous().view(torch.uint8).numpy().tobytes()


def storage_size(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


@pytest.mark.parametrize(("size", "world"), [(2, 2), (4, 4), (2, 4)])
def test_merged_weights_are_those_of_one_process(tmp_path: Path, size: int, world: int) -> None:
    files = write_rank_files(tmp_path, {r: rank_state(r, size, world) for r in range(world)})
    state, report = merge(files)
    io.save(state, tmp_path / "merged.pt")
    merged = io.load(tmp_path / "merged.pt")
    whole = whole_model()
    for weights in (merged["model"], merged["extra_state"]["ema"]):
        assert weights.keys() == whole.keys()
        for key, value in whole.items():
            assert bits(weights[key]) == bits(value), key
    assert report == MergeReport(
        ranks=world,
        updates=40,
        experts=dict.fromkeys(LAYERS, 4),
        parameters=7 * 3 + 1 + 5 * 3 + 2 * (4 * 3 + 4 * 5 * 3 + 4 * 5),  # tied embeddings once
    )


def test_no_tensor_drags_the_others_of_its_layer_along(tmp_path: Path) -> None:
    files = write_rank_files(tmp_path, {rank: rank_state(rank) for rank in range(2)})
    model = merge(files)[0]["model"]
    for key, value in model.items():
        assert storage_size(value) == value.numel() * value.element_size(), key
    embeddings, projection = "encoder.embed_tokens.weight", "decoder.output_projection.weight"
    assert model[embeddings].data_ptr() == model[projection].data_ptr()


def test_all_but_the_optimizer_and_the_layout_stays(tmp_path: Path) -> None:
    files = write_rank_files(tmp_path, {rank: rank_state(rank) for rank in range(2)})
    state, _ = merge(files)
    expected = rank_state(0)
    assert "last_optimizer_state" not in state
    assert state.keys() == expected.keys() - {"last_optimizer_state"}
    for key in ("args", "criterion", "optimizer_history", "task_state"):
        assert state[key] == expected[key]
    assert state["extra_state"]["train_iterator"] == {"epoch": 2, "iterations_in_epoch": 5}
    model = state["cfg"]["model"]
    assert (model.arch, model.base_layers, model.expert_parallel_size) == ("moe_transformer", 0, 1)
    assert state["cfg"]["checkpoint"]["checkpoint_suffix"] == ""
    assert state["cfg"]["task"] == expected["cfg"]["task"]


def test_options_may_be_omegaconf(tmp_path: Path) -> None:
    states = {rank: rank_state(rank) for rank in range(2)}
    for state in states.values():
        state["cfg"]["model"] = vars(state["cfg"]["model"])
        state["cfg"] = OmegaConf.create(state["cfg"])
        OmegaConf.set_struct(state["cfg"], True)
    merged, _ = merge(write_rank_files(tmp_path, states))
    assert merged["cfg"].model.base_layers == 0


def test_stock_fairseq_reads_the_merged_file(tmp_path: Path) -> None:
    files = write_rank_files(tmp_path, {rank: rank_state(rank) for rank in range(2)})
    io.save(merge(files)[0], tmp_path / "merged.pt")
    state = checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "merged.pt"))
    assert state["model"].keys() == whole_model().keys()
    assert state["cfg"].model.base_layers == 0
    assert config.num_updates(state) == 40


def change_options(state: State) -> None:
    state["cfg"]["model"].expert_parallel_size = 4


def change_updates(state: State) -> None:
    state["optimizer_history"][-1]["num_updates"] = 41


def change_sign_of_zero(state: State) -> None:
    state["model"]["encoder.version"] = torch.tensor([-0.0])


def drop_shared(state: State) -> None:
    del state["model"]["encoder.layers.0.fc1.weight"]


def add_shared(state: State) -> None:
    state["model"]["encoder.layers.9.fc1.weight"] = torch.ones(1)


def change_copy(state: State) -> None:
    state["extra_state"]["ema"]["encoder.version"] = torch.tensor([4.0])


def drop_copy(state: State) -> None:
    del state["extra_state"]["ema"]


def drop_expert(state: State) -> None:
    del state["model"]["encoder.layers.1.moe_layer.experts.2.fc1.weight"]


def add_expert(state: State) -> None:
    state["model"]["encoder.layers.1.moe_layer.experts.4.fc1.weight"] = torch.ones(5, 3)
    state["model"]["encoder.layers.1.moe_layer.experts.4.fc1.bias"] = torch.ones(5)


def overlap(state: State) -> None:
    expert = state["model"]["encoder.layers.1.moe_layer.experts.2.fc1.weight"]
    state["model"]["encoder.layers.1.moe_layer.experts.0.fc1.weight"] = expert


REFUSED = [
    (change_options, "{1} is of another run than {0}: their options differ"),
    (
        change_updates,
        "{1} was saved after 41 updates but {0} after 40: use files of one save",
    ),
    (
        change_sign_of_zero,
        "{1}: encoder.version differs from the same entry of another rank "
        "(checkpoint_last-rank-0.pt and on): the files are not of one save",
    ),
    (
        drop_shared,
        "{1} has no encoder.layers.0.fc1.weight, which {0} has: they are of different runs",
    ),
    (
        add_shared,
        "{1} has encoder.layers.9.fc1.weight, which {0} lacks: they are of different runs",
    ),
    (
        change_copy,
        "{1}: encoder.version differs from the same entry of another rank "
        "(checkpoint_last-rank-0.pt and on): the files are not of one save",
    ),
    (drop_copy, "{1} is of another run than {0}: their options differ"),
    (
        drop_expert,
        "{0} and the other ranks' files hold no "
        "encoder.layers.1.moe_layer.experts.2.fc1.weight: they are not all of the run",
    ),
    (
        add_expert,
        "{0} and the other ranks' files hold expert 4 of encoder.layers.1.moe_layer, whose gate "
        "knows 4 experts: they are of different runs",
    ),
    (
        overlap,
        "{1}: encoder.layers.1.moe_layer.experts.0.fc1.weight differs from the same entry of "
        "another rank (checkpoint_last-rank-0.pt and on): the files are not of one save",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSED)
def test_files_that_do_not_belong_together_are_refused(
    tmp_path: Path, spoil: Callable[[State], None], message: str
) -> None:
    states = {rank: rank_state(rank) for rank in range(2)}
    states[0]["model"]["encoder.version"] = torch.tensor([0.0])
    states[1]["model"]["encoder.version"] = torch.tensor([0.0])
    spoil(states[1])
    files = write_rank_files(tmp_path, states)
    with pytest.raises(UserError) as refusal:
        merge(files)
    assert str(refusal.value) == message.format(*files.values())


@pytest.mark.parametrize(
    ("ranks", "world", "message"),
    [
        ([0], 2, "{folder}/checkpoint_last-rank-1.pt is missing: the run had 2 ranks"),
        ([1], 2, "{folder}/checkpoint_last-rank-0.pt is missing: the run had 2 ranks"),
        ([0, 1], 4, "{folder}/checkpoint_last-rank-2.pt is missing: the run had 4 ranks"),
        ([0, 1, 2], 2, "{folder}/checkpoint_last-rank-2.pt is of another run: this one had 2"),
    ],
)
def test_missing_and_foreign_ranks_are_named(
    tmp_path: Path, ranks: list[int], world: int, message: str
) -> None:
    files = write_rank_files(tmp_path, {rank: rank_state(rank, 2, world) for rank in ranks})
    with pytest.raises(UserError) as refusal:
        merge(files)
    assert str(refusal.value).startswith(message.format(folder=tmp_path))


@pytest.mark.parametrize("is_there", [False, True], ids=["missing", "of an older save"])
def test_a_save_that_has_not_ended_is_told(tmp_path: Path, is_there: bool) -> None:
    states = {rank: rank_state(rank, 2) for rank in range(2)}
    states[1]["optimizer_history"][-1]["num_updates"] -= 1
    files = write_rank_files(tmp_path, states)
    partial = tmp_path / "checkpoint_last-rank-1.pt.tmp"
    partial.touch()
    if not is_there:
        files.pop(1).unlink()
    with pytest.raises(UserError) as refusal:
        merge(files)
    assert str(refusal.value).startswith(f"{partial} is of a save that has not ended: wait for it")


def test_bit_equality_is_of_bits() -> None:
    nan = torch.tensor(float("nan"))
    assert bit_equal(nan, nan.clone())
    assert not bit_equal(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not bit_equal(torch.zeros(2), torch.zeros(2, 1))
    assert not bit_equal(torch.zeros(2), torch.zeros(2, dtype=torch.int32))
    assert bit_equal(torch.ones(2, 3).T, torch.ones(3, 2))
    assert bit_equal(torch.zeros(0), torch.zeros(0))
    assert bit_equal(3, 3)
    assert not bit_equal(3, torch.tensor(3))
