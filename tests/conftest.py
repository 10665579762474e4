"""Makes the helpers beside this file importable from every test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def reversal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Binarised data of the reversal task, see `toy`."""
    from toy import write_reversal

    directory = tmp_path_factory.mktemp("reversal")
    return write_reversal(directory, {"train": 4000, "valid": 100, "test": 100})
