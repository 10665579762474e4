"""All ranks' files under stock fairseq-train: what they cost, how they load, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from parallel.test_equals_one_process import assert_same, merged_weights, weights
from ranks import OPTIONS, refusal, train

from zcode_plugin.checkpoint import io, names
from zcode_plugin.checkpoint.tensors import count_elements

TWO = ("--expert-parallel-size", "2", "--disable-validation")


@pytest.fixture(scope="module")
def run(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rank files of two updates under torchrun, and what they merge into, `merged.pt`."""
    folder = tmp_path_factory.mktemp("run")
    toy.train(reversal, folder, *TWO, "--max-update", "2", ranks=2)
    merged_weights(folder)
    return folder


def test_bytes_are_those_of_the_formula(run: Path) -> None:
    """12 for each float32 weight with its two moments of Adam: see docs/checkpoints.md."""
    whole = weights(run / "merged.pt")
    experts = count_elements(v for key, v in whole.items() if names.parse_expert_key(key))
    shared = count_elements(whole.values()) - experts
    assert experts > shared / 2
    for rank in range(2):
        path = run / f"checkpoint_last-rank-{rank}.pt"
        rest = path.stat().st_size - 12 * (shared + experts / 2)
        entries = sum(1 for value in _tensors(io.load(path)))
        assert 0 < rest < 100_000 + 300 * entries  # options, meters, and the names of entries


def _tensors(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [found for value in state.values() for found in _tensors(value)]
    return [state] if hasattr(state, "numel") else []


def test_saved_merged_and_reloaded_weights_are_bit_equal(run: Path) -> None:
    from fairseq.checkpoint_utils import load_model_ensemble_and_task

    from zcode_plugin import register

    register()
    merged = weights(run / "merged.pt")
    saved = [weights(run / f"checkpoint_last-rank-{rank}.pt") for rank in (0, 1)]
    experts = [key for key in merged if ".experts." in key]
    # 2 MoE layers, 4 experts, 2 weights and 2 biases each; each in one rank's file alone.
    assert len(experts) == 2 * 4 * 4
    for key in experts:
        [holder] = [part for part in saved if key in part]
        assert torch.equal(merged[key], holder[key])
    [model], _, _ = load_model_ensemble_and_task([str(run / "merged.pt")])
    reloaded = model.state_dict()
    assert reloaded.keys() == merged.keys()
    for key, tensor in merged.items():
        if not key.endswith("_float_tensor"):
            assert torch.equal(tensor, reloaded[key]), key


def test_every_rank_takes_its_experts_out_of_a_merged_file(
    reversal: Path, run: Path, tmp_path: Path
) -> None:
    """With a learning rate of 0 the weights stay those that were loaded."""
    finetune = ("--finetune-from-model", run / "merged.pt", "--lr", "0", "--max-update", "1")
    train(reversal, tmp_path, "--max-tokens", "1000", *TWO, *finetune, world=2)
    assert_same(weights(run / "merged.pt"), merged_weights(tmp_path), 0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "checkpoint_last-rank-1.pt").unlink(),
         "{0}/checkpoint_last-rank-1.pt is missing: the run had 2 ranks, each of which wrote a "
         "file"),
        (lambda folder: [path.unlink() for path in folder.glob("*-rank-*")],
         "{0}/checkpoint_last.pt is one file for all ranks, but with --expert-parallel-size 2 each "
         "has its own: divide it with zcode reshard {0}/checkpoint_last.pt --ranks 2 "
         "--expert-parallel-size 2 --out DIR, or start from its weights alone with "
         "--finetune-from-model"),
    ],
    ids=["missing", "merged"],
)  # fmt: skip
def test_all_ranks_end_with_one_line(
    reversal: Path, run: Path, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "merged.pt").rename(folder / "checkpoint_last.pt")
    spoil(folder)
    before = sorted(folder.iterdir())
    line = [reversal, *OPTIONS, "--max-tokens", "1000", *TWO, "--save-dir", folder]
    told = refusal(line, tmp_path / "logs")
    assert told == f"zcode_plugin: error: {message.format(folder)}"
    assert sorted(folder.iterdir()) == before
