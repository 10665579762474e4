"""Each mend, shown by a stock command that works with it and fails without it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def _losses(log: str) -> list[float]:
    """The losses of the updates in a fairseq-train log."""
    return [float(loss) for loss in re.findall(r"train_inner \|.* loss=([\d.]+|nan)", log)]


def test_encoder_fastpath(stock: Run, data: Path, checkpoint: Path) -> None:
    # The sentences differ in length: batches of them are padded.
    options = (data, "--cpu", "--path", checkpoint, "--max-tokens=64", "--task=translation")
    disabled = stock("fairseq-validate", *options, ZCODE_COMPAT_DISABLE="encoder-fastpath")
    assert disabled.returncode == 1
    assert "Mask Type should be defined" in disabled.stderr
    enabled = stock("fairseq-validate", *options)
    assert enabled.returncode == 0, enabled.stderr
    assert re.search(r"valid on 'valid' subset \| loss \d+\.\d+ \|", enabled.stdout)


def test_interactive(stock: Run, data: Path, checkpoint: Path) -> None:
    sentences = "a b\nc d e f g\nh\n"
    options = (data, "--cpu", "--path", checkpoint, "--buffer-size=3", "--max-tokens=64")
    done = stock("fairseq-interactive", *options, stdin=sentences)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^S-\d+\t(.*)$", done.stdout, re.MULTILINE) == ["a b", "c d e f g", "h"]
    assert len(re.findall(r"^H-\d+\t", done.stdout, re.MULTILINE)) == 3


def test_numpy_names_in_language_modelling(stock: Run, data: Path, tmp_path: Path) -> None:
    options = (
        data / "lm", "--task=language_modeling", "--sample-break-mode=eos", "--cpu",
        "--arch=transformer_lm", "--decoder-layers=1", "--decoder-embed-dim=8",
        "--decoder-output-dim=8", "--decoder-input-dim=8", "--decoder-ffn-embed-dim=8",
        "--decoder-attention-heads=1", "--optimizer=adam", "--max-tokens=64", "--max-update=1",
        "--num-workers=0", "--no-save", "--save-dir", tmp_path, "--log-format=simple",
        "--log-interval=1", "--lr=0.01", "--tokens-per-sample=16",
    )  # fmt: skip
    disabled = stock("fairseq-train", *options, ZCODE_COMPAT_DISABLE="numpy-names")
    assert disabled.returncode == 1
    assert "has no attribute 'compat'" in disabled.stderr
    enabled = stock("fairseq-train", *options)
    assert enabled.returncode == 0, enabled.stderr
    assert "num_updates 1" in enabled.stdout + enabled.stderr


def test_numpy_names_in_length_buckets(train: Run, checkpoint: Path, tmp_path: Path) -> None:
    assert checkpoint.exists()  # trained with --num-batch-buckets
    disabled = train(tmp_path, "--num-batch-buckets=2", ZCODE_COMPAT_DISABLE="numpy-names")
    assert disabled.returncode == 1
    assert "unexpected keyword argument 'interpolation'" in disabled.stderr


def test_numpy_names_in_span_masks_and_the_crf(stock: Run) -> None:
    script = """
import numpy, torch
from fairseq.data.data_utils import compute_mask_indices
from fairseq.modules.dynamic_crf_layer import DynamicCRF

def masked():
    numpy.random.seed(1)
    mask = compute_mask_indices((1, 20), None, 0.5, 2, no_overlap=True)
    return int(mask.sum())

def normalizer():
    torch.manual_seed(1)
    crf = DynamicCRF(num_embedding=5, low_rank=2, beam_size=5)
    emissions, targets = torch.zeros(1, 3, 5), torch.tensor([[1, 2, 3]])
    torch.nn.init.zeros_(crf.E1.weight)
    return crf._compute_normalizer(emissions, targets).item()

for call in (masked, normalizer):
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
    assert enabled.stdout == "", enabled.stderr


def test_bf16_without_tpu(train: Run, tmp_path: Path) -> None:
    disabled = train(tmp_path, "--bf16", ZCODE_COMPAT_DISABLE="bf16-without-tpu")
    assert disabled.returncode == 1
    assert "xla_device" in disabled.stderr
    enabled = train(tmp_path, "--bf16")
    assert enabled.returncode == 0, enabled.stderr
    print(enabled.stdout)


def test_fp16_on_cpu(train: Run, tmp_path: Path) -> None:
    # A loss scale of 2^40 overflows until it has been halved often enough.
    options = (
        "--fp16",
        "--fp16-init-scale=1099511627776",
        "--max-update=2",
        "--fp16-scale-window=128",
    )
    disabled = train(tmp_path, *options, ZCODE_COMPAT_DISABLE="fp16-on-cpu")
    assert disabled.returncode == 1
    assert "cuda" in disabled.stderr.splitlines()[-1].lower()
    enabled = train(tmp_path, *options)
    assert enabled.returncode == 0, enabled.stderr
    print(enabled.stdout)
