"""Weights, gradients and optimizer state in shards over ranks do what one process does."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import OPTIONS, Ranks, train, watch, watched
from torch import Tensor
from toy import EXACT, generate, lines, run

from zcode_plugin.checkpoint import io, names
from zcode_plugin.errors import UserError
from zcode_plugin.models.fully_sharded_checks import check_fully_sharded
from zcode_plugin.models.moe_config import MoEConfig

SHARDED = ("--ddp-backend", "fully_sharded")
UPDATES, BATCHES, CLIP = 5, 4, 0.3  # batches of an update over all ranks
SAME = (
    "--max-tokens", "300", "--clip-norm", CLIP, "--disable-validation", *EXACT,
    "--moe-gate-loss-wt", "0",
)  # fmt: skip
# SGD shows gradients as they are: Adam would hide a wrong factor.
SGD = ("--optimizer", "sgd", "--lr", "0.5", "--lr-scheduler", "fixed")
LAYOUTS = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)]
SLOW = pytest.mark.slow


def run_layout(
    data: Path, folder: Path, world: int, size: int, *options: object, updates: int = UPDATES
) -> None:
    """Train in a layout, the same batches an update in each."""
    folder.mkdir(exist_ok=True)
    train(
        data, folder / "save", *SAME, "--max-update", updates, "--update-freq", BATCHES // world,
        "--expert-parallel-size", size, *options, world=world, inside=partial(watch, folder),
        launched="fully_sharded" in options,
    )  # fmt: skip


def weights(folder: Path) -> dict[str, Tensor]:
    """Those of all ranks together."""
    last = folder / "save" / "checkpoint_last.pt"
    found: dict[str, Tensor] = {}
    for path in names.find_rank_files(last).values() or [last]:
        found |= io.load(path)["model"]
    return {key: value for key, value in found.items() if "_float_tensor" not in key}


def assert_same(one: Path, other: Path, tolerance: float) -> None:
    """Losses and norms of the updates that `other` did; all weights at the end."""
    first, second = watched(one), watched(other)
    for key in ("loss", "norm"):
        values = [
            torch.tensor([entry[key] for entry in entries[-len(second) :]], dtype=torch.float64)
            for entries in (first, second)
        ]
        torch.testing.assert_close(*values, rtol=0, atol=tolerance)
    own, others = weights(one), weights(other)
    assert own.keys() == others.keys()
    for key, weight in own.items():
        torch.testing.assert_close(others[key], weight, rtol=0, atol=tolerance, msg=key)


@pytest.fixture(scope="module")
def single(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, without shards."""
    folder = tmp_path_factory.mktemp("single")
    run_layout(reversal, folder, 1, 1, *SGD)
    assert min(entry["norm"] for entry in watched(folder)) > CLIP, "not every update was clipped"
    return folder


@pytest.fixture(scope="module")
def adam(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks with experts of their own, shards and Adam, for six updates."""
    folder = tmp_path_factory.mktemp("adam")
    run_layout(reversal, folder, 2, 2, *SHARDED, updates=6)
    return folder


@pytest.mark.parametrize("offload", [(), pytest.param(("--cpu-offload",), marks=SLOW)])
@pytest.mark.parametrize(
    ("world", "size"),
    [pytest.param(*layout, marks=[] if layout[0] == 2 else SLOW) for layout in LAYOUTS],
)
def test_updates_equal_those_of_one_process(
    single: Path, reversal: Path, tmp_path: Path, world: int, size: int, offload: tuple[str, ...]
) -> None:
    run_layout(reversal, tmp_path, world, size, *SGD, *SHARDED, *offload)
    assert_same(single, tmp_path, 1e-6)


@pytest.mark.parametrize(
    "options",
    [
        ("--min-params-to-wrap", "0"), ("--checkpoint-activations",), ("--moe-residual",),
        ("--moe-balance", "bias"), ("--moe-top-k", "2"), ("--no-reshard-after-forward",),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_options_that_change_what_is_wrapped(
    reversal: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run_layout(reversal, one, 1, 1, *SGD, *options)
    run_layout(reversal, two, 2, 2, *SGD, *SHARDED, *options)
    assert_same(one, two, 1e-6)


@pytest.mark.parametrize(
    "options",
    [
        ("--multitask", "mlm:1,mt:0@0,1@2"),  # the decoder starts late
        pytest.param(("--multitask", "mt:1,dae:0.5,mlm:0.5,electra:0.2"), marks=SLOW),
        pytest.param(
            ("--moe-gating-dropout", "0.9", "--moe-gating-dropout-policy", "skip"), marks=SLOW
        ),
    ],
)
def test_what_is_wrapped_may_sit_out_a_pass(
    reversal: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    def ends(folder: Path, *backend: str) -> str:
        return train(
            reversal, folder, *SAME, *SGD, *options, *backend, "--expert-parallel-size", "2",
            "--max-update", "4", world=2,
        )  # fmt: skip

    ends(tmp_path / "without")
    ends(tmp_path / "with", *SHARDED, "--cpu-offload")
    for rank in (0, 1):
        one, other = (
            io.load(tmp_path / name / f"checkpoint_last-rank-{rank}.pt")["model"]
            for name in ("without", "with")
        )
        for key, weight in one.items():
            if "_float_tensor" not in key:
                torch.testing.assert_close(other[key], weight, rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize(
    ("before", "after", "tolerance"),
    [
        (SHARDED, SHARDED, 0.0),
        # Files are the same: a run may go on with shards or without. To Adam's rounding.
        pytest.param((), SHARDED, 1e-4, marks=SLOW),
        pytest.param(SHARDED, (), 1e-4, marks=SLOW),
        pytest.param((*SHARDED, "--cpu-offload"), SHARDED, 0.0, marks=SLOW),
    ],
)
def test_a_resumed_run_goes_on_as_if_it_had_not_ended(
    adam: Path,
    reversal: Path,
    tmp_path: Path,
    before: tuple[str, ...],
    after: tuple[str, ...],
    tolerance: float,
) -> None:
    run_layout(reversal, tmp_path, 2, 2, *before, updates=3)
    for path in tmp_path.glob("watch-*"):
        path.unlink()
    run_layout(reversal, tmp_path, 2, 2, *after, updates=6)
    assert [entry["update"] for entry in watched(tmp_path)] == [4, 5, 6]
    assert_same(adam, tmp_path, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "size"), [(2, 1), (4, 2)])
def test_resuming_in_other_layouts(reversal: Path, tmp_path: Path, world: int, size: int) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run_layout(reversal, whole, world, size, *SHARDED, updates=4)
    for updates in (2, 4):
        run_layout(reversal, halves, world, size, *SHARDED, updates=updates)
    assert_same(whole, halves, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_a_head_that_the_file_has_not_begins_as_without_shards(
    reversal: Path, tmp_path: Path, size: int
) -> None:
    source, single, sharded = tmp_path / "source", tmp_path / "single", tmp_path / "sharded"
    run_layout(reversal, source, 1, 1, updates=1)
    start = (
        "--finetune-from-model", source / "save" / "checkpoint_last.pt", "--lr", "0",
        "--multitask", "mt:1,mlm:1",
    )  # fmt: skip
    run_layout(reversal, single, 1, 1, *start, updates=1)
    run_layout(reversal, sharded, 2, size, *SHARDED, *start, updates=1)
    own, others = weights(single), weights(sharded)
    assert [key for key in own if key.startswith("heads.mlm")]
    assert own.keys() == others.keys()
    for key, weight in own.items():
        assert torch.equal(others[key], weight), key


@pytest.mark.slow
def test_a_run_in_shards_moves_to_one_process(adam: Path, reversal: Path, tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    run_layout(reversal, two, 2, 2, *SHARDED, updates=3)
    one.mkdir()
    run(
        "zcode", "reshard", two / "save" / "checkpoint_last-rank-0.pt", "--ranks", "1",
        "--out", one / "save",
    )  # fmt: skip
    run_layout(reversal, one, 1, 1, updates=6)
    assert [entry["update"] for entry in watched(one)] == [4, 5, 6]
    assert_same(adam, one, 1e-4)


@pytest.mark.slow
def test_shards_are_resumed_joined_and_translate_alike(
    adam: Path, reversal: Path, tmp_path: Path
) -> None:
    for updates in (3, 6):
        run_layout(reversal, tmp_path, 2, 2, *SHARDED, "--use-sharded-state", updates=updates)
    save, joined = tmp_path / "save", tmp_path / "joined.pt"
    assert sorted(path.name for path in save.iterdir()) == [
        f"checkpoint_last-rank-{rank}-shard{rank}.pt" for rank in (0, 1)
    ]
    run("zcode", "merge", save / "checkpoint_last-rank-1-shard1.pt", "--out", joined)
    whole, model = weights(adam), io.load(joined)["model"]
    assert whole.keys() == {key for key in model if "_float_tensor" not in key}
    for key, weight in whole.items():
        assert torch.equal(model[key], weight), key
    merged = tmp_path / "merged.pt"
    run("zcode", "merge", adam / "save" / "checkpoint_last-rank-0.pt", "--out", merged)
    found = [lines(generate(reversal, path, "aa", "bb"), "H") for path in (joined, merged)]
    assert len(found[0]) == 100
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "size"), [(2, 1), (4, 2)])
def test_shards_of_other_layouts_are_joined(
    reversal: Path, tmp_path: Path, world: int, size: int
) -> None:
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    run_layout(reversal, whole, world, size, *SHARDED, updates=2)
    run_layout(reversal, shards, world, size, *SHARDED, "--use-sharded-state", updates=2)
    run("zcode", "merge", shards / "save" / "checkpoint_last.pt", "--out", tmp_path / "joined.pt")
    model = io.load(tmp_path / "joined.pt")["model"]
    for key, weight in weights(whole).items():
        assert torch.equal(model[key], weight), key


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_fp16(reversal: Path, tmp_path: Path, size: int) -> None:
    """As far as numbers of 11 bits go."""
    half = ("--fp16", "--fp16-init-scale", "16", "--adam-eps", "1e-4")
    one, two = tmp_path / "one", tmp_path / "two"
    run_layout(reversal, one, 1, 1, *half)
    run_layout(reversal, two, 2, size, *SHARDED, *half)
    for key in ("loss", "norm"):
        values = [torch.tensor([entry[key] for entry in watched(folder)]) for folder in (one, two)]
        torch.testing.assert_close(*values, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"bf16": True}, "--bf16 and .* give --fp16"),
        ({"memory_efficient_fp16": True, "fp16": True}, "--memory-efficient-fp16 .* --fp16 alone"),
        ({"not_fsdp_flatten_parameters": True}, "--not-fsdp-flatten-parameters .* leave it out"),
        ({"store_ema": True}, "--store-ema .* leave it out"),
        ({"eval_bleu": True}, "--eval-bleu .* use zcode evaluate"),
        ({"check_replicas": 5}, "--check-replicas .* leave it out"),
        ({"amp": True}, "--amp .* give --fp16"),
        ({"no_last_checkpoints": True}, "--no-last-checkpoints .* leave it out"),
        ({"encoder_layerdrop": 0.1}, "--encoder-layerdrop .* leave them out"),
        ({"decoder_layerdrop": 0.1}, "--decoder-layerdrop .* leave them out"),
        ({"zero_sharding": "os"}, "--zero-sharding os .* leave it out"),
        ({"optimizer": "adafactor"}, "--optimizer adafactor.* give adam"),
        ({"heartbeat_timeout": 60}, "--heartbeat-timeout .* give --distributed-timeout instead"),
    ],
)
def test_options_that_cannot_work_are_refused(option: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_fully_sharded(Namespace(**option), MoEConfig())


def test_freezing_and_lost_steps_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--freeze-except"):
        check_fully_sharded(Namespace(), MoEConfig(freeze_except="gate"))
    with pytest.raises(UserError, match=r"--fp16 and --moe-balance bias .* --moe-balance loss"):
        check_fully_sharded(Namespace(fp16=True), MoEConfig(moe_balance="bias"))
    # Where all ranks save, all gather.
    check_fully_sharded(Namespace(no_last_checkpoints=True, use_sharded_state=True), MoEConfig())
    check_fully_sharded(Namespace(no_last_checkpoints=True), MoEConfig(expert_parallel_size=2))
    offload = {"cpu_offload": True, "update_freq": [2]}
    check_fully_sharded(Namespace(**offload, cpu=True), MoEConfig())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_fully_sharded(Namespace(**offload, cpu=True), MoEConfig())
    with pytest.raises(UserError, match="--cpu-offload and --update-freq"):
        check_fully_sharded(Namespace(**offload), MoEConfig())


def refusal(data: Path, folder: Path, *options: object) -> str:
    ranks = Ranks(
        [data, *OPTIONS, "--save-dir", folder / "save", *SAME, "--max-update", "9", *options],
        2, folder / "logs",
    )  # fmt: skip
    assert ranks.exit_codes() == [2, 2]
    return ranks.output()


def test_starts_that_are_refused(reversal: Path, tmp_path: Path) -> None:
    """Stock would begin anew, or mix files of two saves."""
    sharded = (*SHARDED, "--use-sharded-state")
    run_layout(reversal, tmp_path, 2, 1, *sharded, updates=1)
    shards = [tmp_path / "save" / f"checkpoint_last-shard{rank}.pt" for rank in (0, 1)]
    assert "add that, or join them with zcode reshard" in refusal(reversal, tmp_path, *SHARDED)
    assert "without --use-sharded-state after zcode reshard" in refusal(
        reversal, tmp_path, *sharded, "--expert-parallel-size", "2"
    )
    shards[1].rename(tmp_path / "away.pt")
    assert "there are those of ranks 0" in refusal(reversal, tmp_path, *sharded)
    shards[0].rename(tmp_path / "save" / "checkpoint_last.pt")
    assert "starts from shards alone" in refusal(reversal, tmp_path, *sharded)
