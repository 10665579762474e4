"""Slices of layers in shards, on the host, with experts spread over ranks: E+Z-Off+M."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import OPTIONS, Ranks
from sliced_runs import (
    CLIP,
    COMPARABLE,
    RANDOM,
    SAVED,
    SGD,
    T2,
    T2P2,
    UPDATES,
    Layout,
    Run,
    assert_equal,
    run_layout,
    texts,
)
from toy import generate, lines

from zcode_plugin.checkpoint import io, names

SHARDED = ("--ddp-backend", "fully_sharded")
OFFLOADED = (*SHARDED, "--cpu-offload")
T2D2 = Layout(4, 2)  # two groups of ranks, each of which holds a slice of all experts
LAYOUTS = [T2P2, T2, T2D2]
CLIPPED_SGD = (*SGD, "--clip-norm", CLIP)  # Adam would hide a wrong factor
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def single(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One process, with Adam."""
    run = run_layout(reversal, tmp_path_factory.mktemp("adam"), Layout(), *COMPARABLE)
    assert run.norms.min() > CLIP, "not every update was clipped"
    return run


@pytest.fixture(scope="module")
def descended(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One process, with SGD."""
    folder = tmp_path_factory.mktemp("sgd")
    run = run_layout(reversal, folder, Layout(), *COMPARABLE, *CLIPPED_SGD)
    assert run.norms.min() > CLIP, "not every update was clipped"
    return run


@pytest.mark.parametrize(
    ("layout", "backend"),
    [
        pytest.param(
            layout, backend, id=f"{layout}{', offloaded' * (backend is OFFLOADED)}",
            marks=[] if (layout, backend) == (T2P2, OFFLOADED) else SLOW,
        )
        for layout in LAYOUTS
        for backend in (OFFLOADED, SHARDED)
    ],
)  # fmt: skip
def test_gradients_are_those_of_one_process(
    descended: Run, reversal: Path, tmp_path: Path, layout: Layout, backend: tuple[str, ...]
) -> None:
    run = run_layout(reversal, tmp_path, layout, *COMPARABLE, *CLIPPED_SGD, *backend)
    assert_equal(run, descended, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("backend", [OFFLOADED, SHARDED], ids=["offloaded", "sharded"])
def test_updates_equal_those_of_one_process(
    single: Run, reversal: Path, tmp_path: Path, layout: Layout, backend: tuple[str, ...]
) -> None:
    """Through a save in mid-epoch and a reload, and `zcode merge`."""
    stops = (SAVED, UPDATES)
    run = run_layout(reversal, tmp_path, layout, *COMPARABLE, *backend, stops=stops)
    assert len(run.losses) == UPDATES
    assert_equal(run, single)


@pytest.mark.slow
def test_the_merged_file_translates_as_that_of_one_process(
    single: Run, reversal: Path, tmp_path: Path
) -> None:
    run = run_layout(reversal, tmp_path, T2P2, *COMPARABLE, *OFFLOADED)
    one, merged = (
        lines(generate(reversal, file, "aa", "bb"), "D") for file in (single.file, run.file)
    )
    assert len(merged) == 100
    assert texts(merged) == texts(one)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [T2P2, T2D2], ids=str)
def test_files_are_those_of_a_run_without_shards(
    reversal: Path, tmp_path: Path, layout: Layout
) -> None:
    """In names and shapes; values but for rounding."""
    folders = [tmp_path / name for name in ("slices", "shards")]
    for folder, backend in zip(folders, ((), OFFLOADED), strict=True):
        run_layout(reversal, folder, layout, *COMPARABLE, *backend, stops=(2,))
    whole, shards = (
        names.find_rank_files(folder / "save" / "checkpoint_last.pt") for folder in folders
    )
    assert [path.name for path in whole.values()] == [path.name for path in shards.values()]
    assert len(whole) == (layout.world if layout.expert_parallel > 1 else layout.tensor_parallel)
    for one, other in zip(whole.values(), shards.values(), strict=True):
        expected, found = io.load(one), io.load(other)
        assert found["task_state"] == expected["task_state"]
        assert_close(found["model"], expected["model"])
        state, expected_state = (x["last_optimizer_state"] for x in (found, expected))
        assert state["param_groups"] == expected_state["param_groups"]
        assert state["state"].keys() == expected_state["state"].keys()
        for number, entries in expected_state["state"].items():
            assert_close(state["state"][number], entries)


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        if "_float_tensor" not in key:
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [T2P2, T2D2], ids=str)
@pytest.mark.parametrize(
    ("before", "after"),
    [((), OFFLOADED), (OFFLOADED, ()), (OFFLOADED, SHARDED)],
    ids=["into-shards", "out-of-shards", "off-the-host"],
)
def test_a_run_goes_on_with_or_without_shards(
    single: Run,
    reversal: Path,
    tmp_path: Path,
    layout: Layout,
    before: tuple[str, ...],
    after: tuple[str, ...],
) -> None:
    run_layout(reversal, tmp_path, layout, *COMPARABLE, *before, stops=(SAVED,))
    run = run_layout(reversal, tmp_path, layout, *COMPARABLE, *after)
    assert len(run.losses) == UPDATES, "it began anew"
    assert_equal(run, single)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_resumed_run_repeats_itself_with_all_that_is_random(
    reversal: Path, tmp_path: Path, layout: Layout
) -> None:
    """Draws are those of slices without shards, too."""
    one, resumed, unsharded = (
        run_layout(reversal, tmp_path / name, layout, *RANDOM, *backend, stops=stops)
        for name, stops, backend in (
            ("one", (4,), OFFLOADED),
            ("resumed", (2, 4), OFFLOADED),
            ("unsharded", (4,), ()),
        )
    )
    assert torch.equal(one.losses, resumed.losses)
    for key, weight in one.weights.items():
        assert torch.equal(resumed.weights[key], weight), key
    torch.testing.assert_close(unsharded.losses, one.losses, rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [T2P2, T2D2], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        ("--min-params-to-wrap", "0", "--no-reshard-after-forward"),
        ("--checkpoint-activations", "--encoder-learned-pos"),
        ("--moe-residual", "--moe-top-k", "2", "--clip-norm", "0"),
        ("--arch", "moe_transformer_stock", "--encoder-attention-heads", "4",
         "--decoder-attention-heads", "4", "--decoder-embed-dim", "64",
         "--decoder-ffn-embed-dim", "128", "--min-params-to-wrap", "0"),
    ],
    ids=["layer-by-layer", "checkpointed", "residual", "embeddings-apart"],
)  # fmt: skip
def test_other_options(
    reversal: Path, tmp_path: Path, layout: Layout, options: tuple[str, ...]
) -> None:
    single = run_layout(reversal, tmp_path / "one", Layout(), *COMPARABLE, *options)
    run = run_layout(reversal, tmp_path / "run", layout, *COMPARABLE, *options, *OFFLOADED)
    assert_equal(run, single)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("backend", [OFFLOADED, SHARDED], ids=["offloaded", "sharded"])
def test_fp16(
    single: Run, reversal: Path, tmp_path: Path, layout: Layout, backend: tuple[str, ...]
) -> None:
    half = ("--fp16", "--fp16-init-scale", "4")
    run = run_layout(reversal, tmp_path, layout, *COMPARABLE, *half, *backend)
    torch.testing.assert_close(run.losses, single.losses, rtol=0.01, atol=0)
    torch.testing.assert_close(run.norms, single.norms, rtol=0.02, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [T2P2, T2D2], ids=str)
def test_a_merged_file_is_finetuned(
    single: Run, reversal: Path, tmp_path: Path, layout: Layout
) -> None:
    """Every rank takes its slices out of whole weights, those of wrapped layers too."""
    options = ("--finetune-from-model", single.file, "--lr", "0", "--min-params-to-wrap", "0")
    run = run_layout(reversal, tmp_path, layout, *COMPARABLE, *OFFLOADED, *options, stops=(1,))
    for key, weight in single.weights.items():
        assert torch.equal(run.weights[key], weight), key


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--use-sharded-state",),
         "--use-sharded-state cannot go with --model-parallel-size 2, whose slices know nothing of "
         "it: drop one of them"),
        (("--zero-sharding", "os"),
         "--zero-sharding os cannot go with --ddp-backend fully_sharded: it spreads the "
         "optimizer's state, and more, itself: leave it out"),
    ],
)  # fmt: skip
def test_refusals(reversal: Path, tmp_path: Path, option: tuple[str, ...], message: str) -> None:
    line = [reversal, *OPTIONS, "--max-tokens", "300", "--save-dir", tmp_path / "save", *SHARDED]
    ranks = Ranks([*line, "--model-parallel-size", "2", *option], 2, tmp_path / "logs")
    assert ranks.exit_codes() == [2, 2]
    for rank in (0, 1):
        assert f"zcode_plugin: error: {message}" in ranks.output(rank).splitlines()
