"""Makes the helpers beside this file importable from every test."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

# Before anything imports transformers, which reads them then: tests use no network, and the modules
# that it copies out of exported folders go with the tests.
_COPIES = tempfile.TemporaryDirectory(prefix="zcode-huggingface-")
os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=_COPIES.name)
sys.path.insert(0, str(Path(__file__).parent))


# Folders whose files take seconds each, as no others do.
_LIGHT = ("checkpoint", "criterions", "data", "moe", "planning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Light files last: workers then end together, and none begins a long file at the end."""
    items.sort(key=lambda item: item.path.parent.name in _LIGHT)


@pytest.fixture(scope="session")
def reversal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Binarised data of the reversal task, see `toy`."""
    from toy import write_reversal

    directory = tmp_path_factory.mktemp("reversal")
    return write_reversal(directory, {"train": 4000, "valid": 100, "test": 100})
