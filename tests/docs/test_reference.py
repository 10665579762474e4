"""docs/reference.md is what docs/reference.py writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_reference_is_current() -> None:
    done = subprocess.run(
        [sys.executable, DOCS / "reference.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (DOCS / "reference.md").read_text(), "run make docs"
