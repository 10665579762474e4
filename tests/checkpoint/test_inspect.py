"""What is counted in a file is what the model that is built of it has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint.dense_files import ARCHITECTURES, State, build, dense_state, write
from checkpoint.rank_files import rank_state, whole_model, write_rank_files

from zcode_plugin.checkpoint import io, names
from zcode_plugin.checkpoint.inspect import Contents, inspect
from zcode_plugin.cli.main import main
from zcode_plugin.moe import Experts, TopKGate

EXPERT = 8 * 12 + 12 + 12 * 8 + 8
ATTENTION, NORM = 4 * (8 * 8 + 8), 2 * 8


@pytest.fixture
def moe(tmp_path: Path) -> Path:
    """A checkpoint with 4 experts in one layer of each side, d 8, ffn 12, top-2, all tied."""
    source = write(tmp_path, dense_state("moe_transformer_tiny_dense"))
    out = tmp_path / "moe.pt"
    line = ["upcycle", str(source), "--experts", "4", "--top-k", "2", "--out", str(out)]
    assert main([*line, "--with-optimizer"]) == 0
    return out


def total_of(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_numbers_are_those_of_the_model(moe: Path) -> None:
    found = inspect(moe).parameters
    model = build(io.load(moe)["cfg"]["model"])
    assert found.total == total_of(model) == sum(found.parts.values())
    for part, kind in (("experts", Experts), ("gates", TopKGate)):
        modules = [module for module in model.modules() if isinstance(module, kind)]
        assert found.parts[part] == sum(map(total_of, modules))
    assert found.dtypes == {"float32": found.total}


def test_numbers_are_those_counted_by_hand(moe: Path) -> None:
    found = inspect(moe).parameters
    encoder = (ATTENTION + 2 * NORM + EXPERT) + (ATTENTION + 2 * NORM) + NORM
    decoder = (2 * ATTENTION + 3 * NORM + EXPERT) + (2 * ATTENTION + 3 * NORM) + NORM
    assert found.parts == {
        "embeddings": 9 * 8,  # source, target and output are one
        "encoder": encoder,
        "decoder": decoder,
        "experts": 2 * 4 * EXPERT,
        "gates": 2 * 4 * 8,
    }
    assert found.active == 9 * 8 + encoder + decoder + 2 * 2 * EXPERT + 2 * 4 * 8


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("sharing", [{}, {"share_all_embeddings": True}, {
    "share_decoder_input_output_embed": True, "encoder_learned_pos": True
}])  # fmt: skip
def test_tied_tables_count_once_also_where_the_file_has_them_apart(
    tmp_path: Path, arch: str, sharing: dict[str, bool]
) -> None:
    state = dense_state(arch, **sharing)
    model = build(state["cfg"]["model"])
    copies = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if names.is_fast_path_copy(name)
    )
    assert (copies > 0) == (arch == "transformer")
    expected = total_of(model) - copies
    assert inspect(write(tmp_path, state)).parameters.total == expected
    state["model"] = {name: value.clone() for name, value in state["model"].items()}
    found = inspect(write(tmp_path, state)).parameters
    assert found.total == found.active == expected


def test_what_else_is_in_a_file(moe: Path) -> None:
    found = inspect(moe)
    number = found.parameters.total
    assert found == Contents(
        files=[str(moe)],
        bytes=moe.stat().st_size,
        updates=7,
        arch="moe_transformer_tiny",
        task="translation",
        objectives=[],
        languages=["aa", "bb"],
        pairs=["aa-bb"],
        vocabulary={"encoder": 9, "decoder": 9},
        experts={"encoder.layers.1": 4, "decoder.layers.1": 4},
        kept_experts={},
        top_k=2,
        gate="learned",
        parameters=found.parameters,
        optimizer=found.optimizer,
        ema=True,
        ranks=1,
        expert_parallel_size=1,
    )
    optimizer = found.optimizer
    assert (optimizer.name, optimizer.state, optimizer.bytes) == ("FairseqAdam", True, 8 * number)


@pytest.mark.parametrize("name", ["checkpoint_last.pt", "checkpoint_last-rank-1.pt"])
def test_the_whole_set_is_counted_whichever_file_is_named(tmp_path: Path, name: str) -> None:
    states = {rank: rank_state(rank) for rank in range(2)}
    states[0]["cfg"]["task"]["multitask"] = "mt:1,dae:0@0,1@4000"
    files = list(write_rank_files(tmp_path, states).values())
    found = inspect(tmp_path / name)
    experts = sum(value.numel() for key, value in whole_model().items() if ".experts." in key)
    assert found.files == [str(file) for file in files]
    assert found.bytes == sum(file.stat().st_size for file in files)
    assert (found.ranks, found.expert_parallel_size) == (2, 2)
    assert found.parameters.parts["experts"] == experts
    assert found.parameters.active == found.parameters.total - experts * 3 // 4
    assert found.parameters.dtypes["float16"] == 15
    assert (found.objectives, found.languages) == (["mt", "dae"], ["de", "en"])
    moments = states[0]["last_optimizer_state"]["state"].values()
    shared = sum(moment["exp_avg"].numel() * 8 for moment in moments)
    assert found.optimizer.bytes == 2 * shared


def test_heads_are_no_part_of_translation(tmp_path: Path) -> None:
    state = dense_state("moe_transformer_tiny_dense")
    before = inspect(write(tmp_path, state)).parameters
    state["model"]["heads.mlm.weight"] = state["model"]["encoder.embed_tokens.weight"].clone()
    state["model"]["heads.mlm.dense.weight"] = torch.ones(8, 8)
    found = inspect(write(tmp_path, state)).parameters
    assert found.parts["heads"] == 64
    assert (found.total, found.active) == (before.total + 64, before.active)


@pytest.mark.parametrize(("dtype", "in_a_byte"), [(torch.int8, 1), (torch.uint8, 2)])
def test_quantised_experts_count_as_what_they_stand_for(
    moe: Path, dtype: torch.dtype, in_a_byte: int
) -> None:
    whole, state = inspect(moe).parameters, io.load(moe)
    quantise(state, dtype, in_a_byte)
    found = inspect(write(moe.parent, state, "small.pt")).parameters
    assert (found.total, found.active, found.parts) == (whole.total, whole.active, whole.parts)
    weights = 2 * 4 * 2 * 8 * 12
    name = str(dtype).removeprefix("torch.")
    assert found.dtypes == {"float32": whole.total - weights, name: weights}


def quantise(state: State, dtype: torch.dtype, in_a_byte: int) -> None:
    """Matrices of experts as whole numbers, some of them in one byte, with a scale for each row."""
    for key in list(state["model"]):
        if names.parse_expert_key(key) and key.endswith("weight"):
            rows, columns = state["model"][key].shape
            state["model"][key] = torch.ones(rows, columns // in_a_byte, dtype=dtype)
            state["model"][key.removesuffix("weight") + "scale"] = torch.ones(rows)


def test_of_another_model_what_applies(tmp_path: Path) -> None:
    path = write(tmp_path, {"model": {"w2v.conv.weight": torch.ones(3, 2), "step": 5}})
    found = inspect(path)
    assert (found.arch, found.task, found.gate, found.top_k) == (None, None, None, None)
    assert (found.experts, found.vocabulary, found.languages, found.pairs) == ({}, {}, [], [])
    assert (found.parameters.total, found.parameters.parts) == (6, {"other": 6})
    assert not found.optimizer.state
