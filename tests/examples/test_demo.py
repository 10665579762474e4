"""The demo, whole: minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def demo(run_dir: Path, **variables: str) -> str:
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "examples/localisation/demo.sh"],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "RUN": str(run_dir), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def bleu_by_direction(run_dir: Path) -> dict[str, tuple[float, float]]:
    """BLEU of the model and of the source text, by direction."""
    scores = json.loads((run_dir / "results.json").read_text())["directions"]
    return {name: (entry["bleu"], entry["copy_bleu"]) for name, entry in scores.items()}


@pytest.mark.slow
def test_demo_beats_an_untrained_model_and_the_source_in_each_direction(tmp_path: Path) -> None:
    demo(tmp_path / "demo")
    trained = bleu_by_direction(tmp_path / "demo")
    assert len(trained) == 16
    for name in ("report.html", "model_card.md"):
        assert "es-en" in (tmp_path / "demo" / name).read_text()
    # The same data, one update: what the model knows before it is trained.
    (tmp_path / "untrained").mkdir()
    for name in ("corpus", "data"):
        (tmp_path / "untrained" / name).symlink_to(tmp_path / "demo" / name)
    demo(tmp_path / "untrained", UPDATES="1", WARMUP="0")
    untrained = bleu_by_direction(tmp_path / "untrained")
    for direction, (bleu, copy) in trained.items():
        assert bleu > untrained[direction][0] + 2, direction
        assert bleu > copy, direction

    again = demo(tmp_path / "demo")
    assert again.count("finished already") == 4
    assert "train_inner" not in again
