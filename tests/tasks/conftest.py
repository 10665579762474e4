"""The task and its parts inside this process, from a stock command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import zcode_plugin


@pytest.fixture(scope="session")
def configure() -> Callable[..., Any]:
    """Options of fairseq-train, as fairseq itself parses them, for a data directory."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from toy import MODEL, TASK

    zcode_plugin.register()

    def parse(data: object, *arguments: str) -> Any:
        line = [str(data), *TASK, *MODEL, "--criterion", "multitask_summed_loss", *arguments]
        return convert_namespace_to_omegaconf(
            options.parse_args_and_arch(options.get_training_parser(), line)
        )

    return parse
