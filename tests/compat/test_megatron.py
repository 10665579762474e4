"""The mend `megatron`: stock's tensor-parallel models train on ranks of a CPU."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ranks import Ranks, log

Run = Callable[..., subprocess.CompletedProcess[str]]


OPTIONS = (
    "--task=language_modeling", "--sample-break-mode=none", "--tokens-per-sample=16",
    "--arch=transformer_lm_megatron", "--decoder-layers=1", "--decoder-attention-heads=2",
    *(f"--decoder-{part}-dim=16" for part in ("embed", "input", "output", "ffn-embed")),
    "--criterion=vocab_parallel_cross_entropy", "--share-decoder-input-output-embed",
    "--optimizer=adam", "--lr=0.01", "--batch-size=2", "--num-workers=0", "--data-buffer-size=0",
    "--log-format=json", "--log-interval=1", "--cpu", "--distributed-backend=gloo",
    "--ddp-backend=legacy_ddp", "--no-epoch-checkpoints", "--disable-validation",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("disabled", "message"),
    [
        ("megatron", "Please install the megatron submodule"),
        ("megatron-heads", "has no attribute 'num_heads'"),
    ],
)
def test_stock_fails_without(
    stock: Run, data: Path, tmp_path: Path, disabled: str, message: str
) -> None:
    # One rank that a launcher started: size 2 fails before it looks at the number of ranks.
    launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "WORLD_SIZE": "1", "RANK": "0"}
    size = "2" if disabled == "megatron" else "1"
    if size == "1":
        script = (
            "import torch.distributed as d, fairseq.model_parallel.megatron.mpu as m;"
            "from fairseq.model_parallel.modules import *;"
            "from fairseq.model_parallel.modules import ModelParallelMultiheadAttention as A;"
            f"store = d.FileStore('{tmp_path}/s', 1);"
            "d.init_process_group('gloo', store=store, rank=0, world_size=1);"
            "m.initialize_model_parallel(1); print(A(8, 2).num_heads)"
        )
        assert stock("python", "-c", script).stdout.endswith("2\n")
        done = stock("python", "-c", script.replace("/s'", "/t'"), ZCODE_COMPAT_DISABLE=disabled)
    else:
        done = stock(
            "fairseq-train", data / "lm", *OPTIONS, "--model-parallel-size", size,
            "--save-dir", tmp_path, ZCODE_COMPAT_DISABLE=disabled, **launched,
        )  # fmt: skip
    assert done.returncode != 0
    assert message in done.stderr


def test_stocks_own_model_trains_and_resumes(data: Path, tmp_path: Path) -> None:
    def train(updates: int) -> str:
        line = [
            data / "lm", *OPTIONS, "--model-parallel-size=2", f"--max-update={updates}",
            "--save-dir", tmp_path / "save",
        ]  # fmt: skip
        ranks = Ranks(line, 2, tmp_path / "logs")
        assert ranks.exit_codes() == [0, 0], ranks.output(0)[-4000:] + ranks.output(1)[-4000:]
        return ranks.output()

    first = log(train(2), "train_inner", "loss")
    files = sorted(path.name for path in (tmp_path / "save").glob("checkpoint_last*"))
    assert files == [f"checkpoint_last-model_part-{part}.pt" for part in (0, 1)]
    resumed = train(4)
    assert "@ 2 updates" in resumed
    assert len(first) == len(log(resumed, "train_inner", "loss")) == 2


def test_a_size_that_does_not_fit_is_told_in_one_line(data: Path, tmp_path: Path) -> None:
    line = [data / "lm", *OPTIONS, "--model-parallel-size=4", "--save-dir", tmp_path / "save"]
    ranks = Ranks(line, 2, tmp_path / "logs")
    assert ranks.exit_codes() == [2, 2]
    assert (
        "fairseq-train: error: --model-parallel-size 4 must divide the world size 2: choose a "
        "divisor, or another number of ranks" in ranks.output(1).splitlines()
    )


def test_draws_differ_inside_a_fork_and_not_after(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Tensor ranks draw alike on what they share, and not in their slices; twice the same."""
    import fairscale.nn.model_parallel as model_parallel

    from zcode_mends.megatron import RandomStates

    def draw(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        monkeypatch.setattr(model_parallel, "get_model_parallel_rank", lambda: rank)
        torch.manual_seed(3)
        with RandomStates().fork():
            inside = torch.rand(4)
        return inside, torch.rand(4)

    (inside0, after0), (inside1, after1), (again, _) = draw(0), draw(1), draw(0)
    assert torch.equal(after0, after1)
    assert not torch.equal(inside0, inside1)
    assert torch.equal(inside0, again)
    assert not torch.equal(inside0, after0)
