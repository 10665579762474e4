"""A checkpoint quantised: what changes, what stays, and who must not take it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint.rank_files import (
    D_FFN,
    D_MODEL,
    EXPERTS,
    LAYERS,
    State,
    rank_state,
    whole_model,
    write_rank_files,
)
from fairseq import checkpoint_utils

from zcode_plugin.checkpoint import io
from zcode_plugin.checkpoint.average import average_whole
from zcode_plugin.checkpoint.gather import gather_whole
from zcode_plugin.checkpoint.merge import merge
from zcode_plugin.checkpoint.quantise import LayerReport, quantise_checkpoint
from zcode_plugin.checkpoint.reshard import plan
from zcode_plugin.checkpoint.resume import check_start
from zcode_plugin.checkpoint.tensors import bit_equal
from zcode_plugin.errors import UserError
from zcode_plugin.moe.quantised import quantise

WEIGHTS = [f"{layer}.experts.{n}.fc1.weight" for layer in LAYERS for n in range(EXPERTS)]
HEAD = "heads.mlm.dense.weight"


@pytest.fixture
def ranks(tmp_path: Path) -> list[Path]:
    """The files of a run of two ranks."""
    states = {rank: rank_state(rank) for rank in range(2)}
    for state in states.values():
        state["model"][HEAD] = torch.ones(D_MODEL, D_MODEL)
    return list(write_rank_files(tmp_path, states).values())


@pytest.fixture
def quantised(ranks: list[Path], tmp_path: Path) -> Path:
    path = tmp_path / "quantised.pt"
    io.save(quantise_checkpoint(ranks[0], 8).state, path)
    return path


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_of_experts_change_and_nothing_else(
    ranks: list[Path], tmp_path: Path, bits: int
) -> None:
    result = quantise_checkpoint(ranks[1], bits)
    io.save(result.state, tmp_path / "quantised.pt")
    # Plain tensors: torch's own loader reads the file behind fairseq's allow-list.
    model = checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "quantised.pt"))["model"]
    whole = {**whole_model(), HEAD: torch.ones(D_MODEL, D_MODEL)}
    scales = {key.replace("weight", "scale") for key in WEIGHTS}
    assert model.keys() == whole.keys() | scales
    for key, value in whole.items():
        if key in WEIGHTS:
            stored, scale = quantise(value, bits)
            assert bit_equal(model[key], stored), key
            assert bit_equal(model[key.replace("weight", "scale")], scale), key
        else:
            assert bit_equal(model[key], value), key


@pytest.mark.parametrize("bits", [8, 4])
def test_the_report_counts_bytes(ranks: list[Path], bits: int) -> None:
    result = quantise_checkpoint(ranks[0], bits)
    width = D_MODEL if bits == 8 else (D_MODEL + 1) // 2
    assert result.files == ranks
    assert result.layers == {
        layer: LayerReport(
            errors=result.layers[layer].errors,
            bytes_before=EXPERTS * D_FFN * D_MODEL * 4,
            bytes_after=EXPERTS * D_FFN * (width + 4),
        )
        for layer in LAYERS
    }
    # The tied embeddings once; a matrix in float16.
    biases_and_gates = 2 * EXPERTS * (D_FFN + D_MODEL)
    assert result.other_bytes == 4 * (7 * 3 + 1 + 9 + biases_and_gates) + 2 * 15
    assert result.other_tensors == len(result.state["model"]) - 2 * len(WEIGHTS)
    for key in WEIGHTS:
        whole = whole_model()[key]
        stored, scale = quantise(whole, 8)
        if bits == 8:
            error = float((stored * scale[:, None] - whole).norm() / whole.norm())
            layer, _, rest = key.partition(".experts.")
            assert result.layers[layer].errors[int(rest[0])] == pytest.approx(error, rel=1e-4)


def test_options_say_so_and_copies_are_left_out(ranks: list[Path]) -> None:
    result = quantise_checkpoint(ranks[0], 4)
    model = result.state["cfg"]["model"]
    assert (model.moe_expert_bits, model.expert_parallel_size, model.base_layers) == (4, 1, 0)
    assert result.dropped == ["ema"]
    assert result.state["extra_state"].keys() == {"train_iterator", "val_loss"}
    assert "last_optimizer_state" not in result.state


def test_one_file_gives_what_rank_files_give(ranks: list[Path], tmp_path: Path) -> None:
    merged = tmp_path / "merged.pt"
    io.save(merge(dict(enumerate(ranks)))[0], merged)
    one, other = (quantise_checkpoint(path, 8).state["model"] for path in (merged, ranks[0]))
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert bit_equal(value, other[key]), key


def make_inf(state: State) -> None:
    state["model"][WEIGHTS[0]][0, 0] = float("inf")


def make_integer(state: State) -> None:
    state["model"][WEIGHTS[0]] = state["model"][WEIGHTS[0]].int()


def make_vector(state: State) -> None:
    state["model"][WEIGHTS[0]] = state["model"][WEIGHTS[0]][0]


def drop_experts(state: State) -> None:
    model = state["model"]
    state["model"] = {key: value for key, value in model.items() if ".experts." not in key}


def quantise_before(state: State) -> None:
    state["cfg"]["model"].moe_expert_bits = 8


REFUSED = [
    (make_inf, f": {WEIGHTS[0]} holds inf or nan: take a checkpoint from before that"),
    (make_integer, f": {WEIGHTS[0]} is no matrix of floats, as fc1 and fc2 of experts are"),
    (make_vector, f": {WEIGHTS[0]} is no matrix of floats, as fc1 and fc2 of experts are"),
    (drop_experts, " has no experts: there is nothing to quantise"),
    (
        quantise_before,
        " holds experts of 8 bits already: quantise the checkpoint it was made of",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSED)
def test_checkpoints_that_cannot_be_quantised(
    tmp_path: Path, spoil: Callable[[State], None], message: str
) -> None:
    state = rank_state(0, 1)
    spoil(state)
    path = tmp_path / "one.pt"
    torch.save(state, path)
    with pytest.raises(UserError) as refusal:
        quantise_checkpoint(path, 4)
    assert str(refusal.value) == f"{path}{message}"


def finetune(path: Path) -> None:
    check_start(Namespace(save_dir=str(path.parent / "new"), finetune_from_model=str(path)), [])


def restore(path: Path) -> None:
    folder = str(path.parent / "new")
    check_start(Namespace(save_dir=folder, restore_file=str(path), reset_optimizer=True), [])


@pytest.mark.parametrize(
    ("use", "purpose"),
    [
        (finetune, "to train on"),
        (restore, "to train on"),
        (lambda path: plan([path], 2), "to train on"),
        (lambda path: average_whole([[path], [path]]), "to average"),
    ],
)
def test_a_quantised_checkpoint_is_for_translation(
    quantised: Path, use: Callable[[Path], object], purpose: str
) -> None:
    with pytest.raises(UserError) as refusal:
        use(quantised)
    assert str(refusal.value) == (
        f"{quantised} holds experts of 8 bits, made by zcode quantise to translate with, not "
        f"{purpose}: name the checkpoint it was made of"
    )


def test_a_quantised_checkpoint_is_read_as_any_other(quantised: Path) -> None:
    files, gathered = gather_whole(quantised)
    assert files == [quantised]
    assert gathered.experts == dict.fromkeys(LAYERS, EXPERTS)
    key = WEIGHTS[3]
    assert bit_equal(gathered.state["model"][key], quantise(whole_model()[key], 8)[0])
