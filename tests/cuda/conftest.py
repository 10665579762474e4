"""Tests of this folder need a GPU; a machine without one skips them."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.path.parts[-2:]:
            item.add_marker(
                pytest.mark.skip(reason="needs a CUDA GPU; with one: pytest tests/cuda")
            )
