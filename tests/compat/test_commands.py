"""Each mend, shown by a stock command that works with it and fails without it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

HYDRA_CONFIG = """
# @package _group_
common: {cpu: true, log_format: simple, log_interval: 1}
task: {_name: translation, data: "???"}
model:
  _name: transformer
  base_layers: 0
  encoder: {layers: 1, embed_dim: 8, ffn_embed_dim: 8, attention_heads: 1}
  decoder: {layers: 1, embed_dim: 8, ffn_embed_dim: 8, attention_heads: 1}
criterion: {_name: cross_entropy}
optimizer: {_name: adam}
lr_scheduler: {_name: fixed}
dataset: {max_tokens: 64, num_workers: 0}
optimization: {max_update: 2, lr: [0.01]}
checkpoint: {no_save: true}
"""


def _losses(log: str) -> list[float]:
    """The losses of the updates in a fairseq-train log, in bits a token."""
    return [float(loss) for loss in re.findall(r"train_inner \|.*? loss=([\d.]+|nan)", log)]


def test_generate(generate: Run, checkpoint: Path) -> None:
    # The sentences differ in length: batches of them are padded.
    disabled = generate(checkpoint, ZCODE_COMPAT_DISABLE="encoder-fastpath")
    assert disabled.returncode == 1
    assert "Mask Type should be defined" in disabled.stderr
    enabled = generate(checkpoint)
    assert enabled.returncode == 0, enabled.stderr
    assert len(re.findall(r"^D-\d+\t", enabled.stdout, re.MULTILINE)) == 16
    assert "Generate valid with beam=5: BLEU4 =" in enabled.stdout


def test_validate(stock: Run, data: Path, checkpoint: Path) -> None:
    options = (data, "--cpu", "--path", checkpoint, "--max-tokens=64", "--task=translation")
    done = stock("fairseq-validate", *options)
    assert done.returncode == 0, done.stderr
    assert re.search(r"valid on 'valid' subset \| loss \d+\.\d+ \|", done.stdout)


def test_interactive(stock: Run, data: Path, checkpoint: Path) -> None:
    options = (data, "--cpu", "--path", checkpoint, "--buffer-size=3", "--max-tokens=64")
    done = stock("fairseq-interactive", *options, stdin="a b\nc d e f g\nh\n")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^S-\d+\t(.*)$", done.stdout, re.MULTILINE) == ["a b", "c d e f g", "h"]
    assert len(re.findall(r"^H-\d+\t", done.stdout, re.MULTILINE)) == 3


def test_hydra_train(stock: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(HYDRA_CONFIG)
    where = ("--config-dir", tmp_path, "--config-name=tiny", f"hydra.run.dir={tmp_path}/run")
    done = stock("fairseq-hydra-train", *where, f"task.data={data}", "optimization.max_update=1")
    assert done.returncode == 0, done.stderr
    assert "num_updates: 1 >= max_update: 1" in done.stdout
    broken = tmp_path / "broken.pt"
    broken.write_text("hello\n")
    done = stock(
        "fairseq-hydra-train", *where, f"task.data={data}", f"checkpoint.restore_file={broken}"
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        f"fairseq-hydra-train: error: {broken}: cannot be loaded"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_numpy_names_in_language_modelling(stock: Run, data: Path, tmp_path: Path) -> None:
    sizes = [f"--decoder-{part}-dim=8" for part in ("embed", "input", "output", "ffn-embed")]
    options = (
        data / "lm", "--task=language_modeling", "--sample-break-mode=eos", "--cpu",
        "--arch=transformer_lm", "--decoder-layers=1", "--decoder-attention-heads=1", *sizes,
        "--optimizer=adam", "--lr=0.01", "--max-tokens=64", "--max-update=1", "--num-workers=0",
        "--data-buffer-size=0",
        "--no-save", "--save-dir", tmp_path, "--log-format=simple", "--log-interval=1",
    )  # fmt: skip
    disabled = stock("fairseq-train", *options, ZCODE_COMPAT_DISABLE="numpy-names")
    assert disabled.returncode == 1
    assert "has no attribute 'compat'" in disabled.stderr
    enabled = stock("fairseq-train", *options)
    assert enabled.returncode == 0, enabled.stderr
    assert len(_losses(enabled.stdout + enabled.stderr)) == 1


@pytest.mark.slow
def test_numpy_names_in_length_buckets(train: Run, checkpoint: Path, tmp_path: Path) -> None:
    assert checkpoint.exists()  # which was trained with --num-batch-buckets
    disabled = train(tmp_path, "--num-batch-buckets=2", ZCODE_COMPAT_DISABLE="numpy-names")
    assert disabled.returncode == 1
    assert re.search(r"'interpolation'|has no attribute 'compat'", disabled.stderr)


@pytest.mark.slow
def test_numpy_names_in_span_masks_and_the_crf(stock: Run) -> None:
    script = """
import numpy, torch
from fairseq.data.data_utils import compute_mask_indices
from fairseq.modules.dynamic_crf_layer import DynamicCRF

def masked_positions():
    return int(compute_mask_indices((1, 20), None, 0.5, 2, no_overlap=True).sum())

def normalizer():
    crf = DynamicCRF(num_embedding=5, low_rank=2, beam_size=5)
    torch.nn.init.zeros_(crf.E1.weight)
    targets = torch.tensor([[1, 2, 3]])
    return round(crf._compute_normalizer(torch.zeros(1, 3, 5), targets).item(), 4)

for call in (masked_positions, normalizer):
    try:
        print(call())
    except AttributeError as error:
        print(str(error).splitlines()[0])
print(hasattr(numpy, "int"), hasattr(numpy, "compat"))
"""
    disabled = stock("python", "-c", script, ZCODE_COMPAT_DISABLE="numpy-names")
    assert disabled.stdout.splitlines()[:2] == [
        "module 'numpy' has no attribute 'int'.",
        "module 'numpy' has no attribute 'float'.",
    ]
    enabled = stock("python", "-c", script)
    # Half of 20 positions; log(5 ** 3) for 5 equal labels in 3 places; numpy itself as it was.
    assert enabled.stdout == "10\n4.8283\nFalse False\n", enabled.stderr


@pytest.mark.slow
def test_bf16_without_tpu(train: Run, tmp_path: Path) -> None:
    disabled = train(tmp_path, "--bf16", ZCODE_COMPAT_DISABLE="bf16-without-tpu")
    assert disabled.returncode == 1
    assert "xla_device" in disabled.stderr
    enabled = train(tmp_path, "--bf16", "--no-save")
    assert enabled.returncode == 0, enabled.stderr
    first, second = _losses(enabled.stdout + enabled.stderr)
    assert second < first


@pytest.mark.slow
def test_fp16_on_cpu(train: Run, tmp_path: Path) -> None:
    options = ("--fp16", "--no-save", "--disable-validation")
    disabled = train(tmp_path, *options, ZCODE_COMPAT_DISABLE="fp16-on-cpu")
    assert disabled.returncode == 1
    assert re.search("cuda|nvidia", disabled.stderr.splitlines()[-1], re.IGNORECASE)
    # The scale, 2 ** 20, makes gradients overflow until it has been halved often enough.
    enabled = train(tmp_path, *options, "--fp16-init-scale=1048576", "--fp16-scale-window=128")
    log = enabled.stdout + enabled.stderr
    assert enabled.returncode == 0, log
    assert "gradient overflow detected, ignoring gradient, setting loss scale to: 524288.0" in log
    first, second = _losses(log)
    assert second < first


@pytest.mark.slow
def test_fully_sharded_on_cpu(train: Run, tmp_path: Path) -> None:
    """Two ranks, saved and resumed: the losses of --ddp-backend legacy_ddp."""

    def run(folder: str, backend: str, updates: int, **environment: str) -> tuple[int, str]:
        done = train(
            tmp_path / folder, "--distributed-backend=gloo", f"--ddp-backend={backend}",
            f"--max-update={updates}", "--dropout=0", "--max-tokens=32", "--disable-validation",
            launcher=("torchrun", "--nproc-per-node=2", "--rdzv-backend=c10d",
                      "--rdzv-endpoint=localhost:0"),
            **environment,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    code, log = run("disabled", "fully_sharded", 1, ZCODE_COMPAT_DISABLE="fully-sharded-on-cpu")
    assert code == 1
    assert re.search("cuda|nvidia", log, re.IGNORECASE)
    found = [run("sharded", "fully_sharded", updates) for updates in (2, 4)]
    expected = run("whole", "legacy_ddp", 4)
    assert [code for code, _ in (*found, expected)] == [0, 0, 0], found[-1][1]
    assert len(_losses(expected[1])) == 4
    assert _losses(found[0][1]) + _losses(found[1][1]) == _losses(expected[1])


@pytest.mark.parametrize(
    "disabled", [pytest.param("fully-sharded-alone", marks=pytest.mark.slow), ""]
)
def test_fully_sharded_in_one_process(train: Run, tmp_path: Path, disabled: str) -> None:
    done = train(tmp_path, "--ddp-backend=fully_sharded", ZCODE_COMPAT_DISABLE=disabled)
    if disabled:
        assert done.returncode == 1
        assert "No module named 'fairscale.utils'" in done.stderr
    else:
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1] == (
            "fairseq-train: error: --ddp-backend fully_sharded needs a process group, and this is "
            "one process by itself: start it with torchrun, if need be with --nproc-per-node=1, or "
            "drop the flag"
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "call", ["tensor.record_stream(None)", "tensor.pin_memory()", "sharded(torch.zeros(2, 2))"]
)
def test_what_torch_and_fairscale_cannot_do_without_a_gpu(stock: Run, call: str) -> None:
    """When one of these works, a line of the mend `fully-sharded-on-cpu` can go."""
    script = f"""
import torch
from fairseq.distributed.fully_sharded_data_parallel import FSDP
store = torch.distributed.HashStore()
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
tensor, sharded = torch.zeros(1), FSDP(torch.nn.Linear(2, 2))
{call}
"""
    done = stock("python", "-c", script, ZCODE_COMPAT_DISABLE="fully-sharded-on-cpu")
    assert done.returncode == 1
    enabled = stock("python", "-c", script)
    assert enabled.returncode == 0, enabled.stderr


@pytest.mark.parametrize(
    ("mend", "message"),
    [
        pytest.param(
            "checkpoint-broadcast",
            "GLOBAL omegaconf.dictconfig.DictConfig was not an allowed",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "ddp-on-cpu",
            "device_ids and output_device arguments only work with",
            marks=pytest.mark.slow,
        ),
        ("", ""),
    ],
)
def test_two_ranks_resume(
    train: Run, checkpoint: Path, tmp_path: Path, mend: str, message: str
) -> None:
    done = train(
        tmp_path, "--restore-file", checkpoint, "--reset-dataloader", "--no-save",
        "--distributed-backend=gloo", "--ddp-backend=pytorch_ddp", "--max-update=4",
        launcher=("torchrun", "--nproc-per-node=2", "--rdzv-backend=c10d",
                  "--rdzv-endpoint=localhost:0"),
        ZCODE_COMPAT_DISABLE=mend,
    )  # fmt: skip
    log = done.stdout + done.stderr
    if mend:
        assert done.returncode == 1
        assert message in log
    else:
        assert done.returncode == 0, log
        assert "Loaded checkpoint" in log
        assert "@ 2 updates)" in log
        assert len(_losses(log)) == 2
