"""Ranks with slices of the layers do what one process does, with experts spread over them, too."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import OPTIONS, Ranks, log, train, watch, watched
from torch import Tensor
from toy import EXACT, generate, lines

from zcode_plugin.checkpoint import io, names
from zcode_plugin.checkpoint.merge import merge

UPDATES, SAVED = 5, 3
CLIP = 0.3
TOLERANCE = 1e-5
RUN = ("--max-tokens", "300", "--clip-norm", CLIP, "--disable-validation")
ADAM = ("--adam-eps", "1e-4")  # see test_layouts.py
# ReLU's gradient jumps at 0, and some hidden value lies there but for rounding: plain data parallel
# ranks then differ by 2e-5, too.
COMPARABLE = (
    *EXACT, "--moe-gate-loss-wt", "0", "--label-smoothing", "0.1", "--activation-fn", "gelu",
)  # fmt: skip
RANDOM = (
    "--dropout", "0.1", "--attention-dropout", "0.1", "--activation-dropout", "0.1",
    "--moe-jitter-eps", "0.01", "--moe-capacity-factor", "0.8", "--moe-top-k", "2",
    "--moe-residual", "--moe-gating-dropout", "0.3", "--multitask", "mt:1,dae:0.5,mlm:1,electra:1",
    "--check-replicas", "1", "--max-update", "4",
)  # fmt: skip
SGD = ("--optimizer", "sgd", "--lr", "0.5", "--lr-scheduler", "fixed", "--clip-norm", "1")


@dataclass(frozen=True)
class Layout:
    """World, T and P; 4 batches an update in every layout."""

    world: int = 1
    tensor: int = 1
    parallel: int = 1

    @property
    def flags(self) -> tuple[object, ...]:
        return (
            "--update-freq", 4 * self.tensor // self.world,
            "--model-parallel-size", self.tensor, "--expert-parallel-size", self.parallel,
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.world} ranks, T={self.tensor}, P={self.parallel}"


T2, T2P2 = Layout(2, 2), Layout(4, 2, 2)
LAYOUTS = [T2, T2P2, Layout(4, 2), Layout(4, 4), Layout(8, 2, 2)]


@dataclass
class Run:
    """Loss and norm after each update, and the weights of all ranks together, in one file."""

    losses: Tensor
    norms: Tensor
    weights: dict[str, Tensor]
    file: Path

    @property
    def parameters(self) -> list[str]:
        """As the optimizer numbers them."""
        return io.load_options(self.file)["task_state"]["parameters"]


def run_layout(
    data: Path, folder: Path, layout: Layout, *options: object, stops: tuple[int, ...] = (UPDATES,)
) -> Run:
    """Train; after each of `stops` updates the ranks end and start again."""
    folder.mkdir()
    adam = () if "sgd" in options else ADAM
    for stop in stops:
        output = train(
            data, folder / "save", *RUN, *adam, *layout.flags, *options, "--max-update", stop,
            world=layout.world, inside=partial(watch, folder),
        )  # fmt: skip
    if len(stops) > 1:
        assert f"@ {stops[0]} updates" in output, "it began anew"
    whole = folder / "save" / "checkpoint_last.pt"
    if layout.world > 1:
        state, _ = merge(names.find_rank_files(whole))
        whole = folder / "merged.pt"
        io.save(state, whole)
    # Every rank sees the same norm; ranks of other data have losses of their own.
    ranks = [watched(folder, rank) for rank in range(layout.world)]
    for entries in ranks[1:]:
        assert [entry["norm"] for entry in entries] == [entry["norm"] for entry in ranks[0]]
    return Run(
        *(
            torch.tensor([entry[key] for entry in ranks[0]], dtype=torch.float64)
            for key in ("loss", "norm")
        ),
        # Without stock's buffer that nothing sets.
        {key: value for key, value in io.load(whole)["model"].items() if "_float_te" not in key},
        whole,
    )


def assert_equal(run: Run, single: Run) -> None:
    torch.testing.assert_close(run.losses, single.losses, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(run.norms, single.norms, rtol=TOLERANCE, atol=TOLERANCE)
    assert run.weights.keys() == single.weights.keys()
    assert run.parameters == single.parameters  # else zcode reshard would mix them up
    for key, weight in single.weights.items():
        torch.testing.assert_close(run.weights[key], weight, rtol=0, atol=TOLERANCE, msg=key)


@pytest.fixture(scope="module")
def single(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("single") / "run"
    return run_layout(reversal, folder, Layout(), *COMPARABLE)


@pytest.fixture(scope="module")
def translations(reversal: Path, single: Run) -> list[str]:
    return lines(generate(reversal, single.file, "aa", "bb"), "D")


def texts(translated: list[str]) -> list[str]:
    """Without the scores, whose last digits are rounding's."""
    return [line.rpartition("\t")[2] for line in translated]


@pytest.mark.parametrize(
    "layout",
    [pytest.param(x, id=str(x), marks=[pytest.mark.slow] * (x not in (T2, T2P2))) for x in LAYOUTS],
)
def test_updates_equal_those_of_one_process(
    single: Run, translations: list[str], reversal: Path, tmp_path: Path, layout: Layout
) -> None:
    """Through a save and a reload, and `zcode merge`, whose file translates as the other does."""
    assert len(single.losses) == UPDATES
    assert single.norms.min() > CLIP, "not every update was clipped"
    run = run_layout(reversal, tmp_path / "run", layout, *COMPARABLE, stops=(SAVED, UPDATES))
    assert_equal(run, single)
    saved = sorted(path.name for path in (tmp_path / "run" / "save").iterdir())
    kind, count = ("rank", layout.world) if layout.parallel > 1 else ("model_part", layout.tensor)
    assert saved == [f"checkpoint_last-{kind}-{number}.pt" for number in range(count)]
    if layout == T2P2:
        translated = lines(generate(reversal, run.file, "aa", "bb"), "D")
        assert len(translated) == 100
        assert texts(translated) == texts(translations)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [T2, T2P2], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        SGD,
        (*SGD, "--moe-residual", "--moe-top-k", "2", "--clip-norm", "0"),
        ("--arch", "moe_transformer_stock", "--encoder-attention-heads", "4",
         "--decoder-attention-heads", "4", "--decoder-embed-dim", "64",
         "--decoder-ffn-embed-dim", "128"),
        ("--activation-fn", "tanh", "--checkpoint-activations", "--encoder-learned-pos"),
    ],
    ids=["sgd", "residual", "embeddings-apart", "checkpointed"],
)  # fmt: skip
def test_other_options(
    reversal: Path, tmp_path: Path, layout: Layout, options: tuple[str, ...]
) -> None:
    single = run_layout(reversal, tmp_path / "one", Layout(), *COMPARABLE, *options)
    assert_equal(run_layout(reversal, tmp_path / "run", layout, *COMPARABLE, *options), single)


@pytest.mark.slow
def test_heads_of_objectives(reversal: Path, tmp_path: Path) -> None:
    """On ranks of one batch: over several, objectives are weighed within each micro-batch."""
    options = ("--multitask", "mt:1,dae:0.5,mlm:1", "--max-tokens", "200")
    single = run_layout(reversal, tmp_path / "one", Layout(), *COMPARABLE, *options)
    assert_equal(run_layout(reversal, tmp_path / "run", T2, *COMPARABLE, *options), single)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [T2, T2P2], ids=str)
def test_what_is_random_keeps_replicas_together_and_repeats_itself(
    reversal: Path, tmp_path: Path, layout: Layout
) -> None:
    """With every kind of draw: through a reload bit for bit; recomputed, gradients are added up in
    another order, but the draws are the same."""
    one, resumed, recomputed = (
        run_layout(reversal, tmp_path / name, layout, *RANDOM, *options, stops=stops)
        for name, stops, options in (
            ("one", (4,), ()),
            ("resumed", (2, 4), ()),
            ("recomputed", (4,), ("--checkpoint-activations",)),
        )
    )
    assert torch.equal(one.losses, resumed.losses)
    for key, weight in one.weights.items():
        assert torch.equal(resumed.weights[key], weight), key
    torch.testing.assert_close(recomputed.losses, one.losses, rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision",
    [("--bf16",), ("--fp16", "--memory-efficient-fp16", "--fp16-init-scale", "4"),
     ("--fp16", "--fp16-no-flatten-grads", "--fp16-init-scale", "4")],
    ids=["bf16", "memory-efficient-fp16", "fp16"],
)  # fmt: skip
def test_half_precision(
    single: Run, reversal: Path, tmp_path: Path, precision: tuple[str, ...]
) -> None:
    run = run_layout(reversal, tmp_path / "run", T2P2, *COMPARABLE, *precision)
    torch.testing.assert_close(run.losses, single.losses, rtol=0.01, atol=0)
    torch.testing.assert_close(run.norms, single.norms, rtol=0.02, atol=0)


@pytest.mark.slow
def test_a_merged_file_is_finetuned_in_slices(single: Run, reversal: Path, tmp_path: Path) -> None:
    """With a learning rate of 0 the weights stay those that were loaded."""
    finetune = ("--finetune-from-model", single.file, "--lr", "0")
    run = run_layout(reversal, tmp_path / "run", T2P2, *COMPARABLE, *finetune, stops=(1,))
    for key, weight in single.weights.items():
        assert torch.equal(run.weights[key], weight), key


@pytest.mark.slow
def test_bleu_in_validation_is_that_of_one_process(reversal: Path, tmp_path: Path) -> None:
    options: tuple[Any, ...] = (
        "--max-tokens", "300", *COMPARABLE, "--max-update", "30", "--eval-bleu",
        "--eval-bleu-args", '{"beam": 2, "max_len_b": 10}', "--validate-interval-updates", "30",
    )  # fmt: skip
    one, four = (
        train(reversal, tmp_path / str(layout.world), *options, *layout.flags, world=layout.world)
        for layout in (Layout(), T2P2)
    )
    assert log(one, "valid", "valid_bleu") == log(four, "valid", "valid_bleu")
    assert log(one, "valid", "valid_bleu")[0] > 0


@pytest.mark.parametrize(
    ("world", "options", "message"),
    [
        (2, ["--encoder-attention-heads", "1"],
         "--model-parallel-size 2 must divide --encoder-attention-heads 1: change one of them"),
        (2, ["--zero-sharding", "os"],
         "--zero-sharding cannot go with --model-parallel-size 2, whose slices know nothing of "
         "it: drop one of them"),
        (2, ["--expert-parallel-size", "2"],
         "--expert-parallel-size 2 must divide the world size 1 and --moe-expert-count 4: choose "
         "a common divisor, or other numbers of ranks and experts"),
        (1, [],
         "--model-parallel-size 2 needs a multiple of 2 ranks, this is one process: start it with "
         "torchrun, or drop the flag"),
    ],
    ids=["heads", "zero", "world", "one-process"],
)  # fmt: skip
def test_refusals(
    reversal: Path, tmp_path: Path, world: int, options: list[str], message: str
) -> None:
    line = [reversal, *OPTIONS, "--max-tokens", "300", "--save-dir", tmp_path / "save"]
    ranks = Ranks([*line, "--model-parallel-size", "2", *options], world, tmp_path / "logs")
    assert ranks.exit_codes() == [2] * world
    for rank in range(world):
        assert f"zcode_plugin: error: {message}" in ranks.output(rank).splitlines()
