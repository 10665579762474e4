"""The task and its parts inside this process, from a stock command line."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
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


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[[Callable[[], object]], str]:
    """The one line in which a call is refused, with exit code 2."""

    def line_of(call: Callable[[], object]) -> str:
        with pytest.raises(SystemExit) as stopped:
            call()
        assert stopped.value.code == 2
        [line] = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        return line

    return line_of


@pytest.fixture
def first_batch(configure: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Task, model, criterion and the first training batch for a data directory and flags."""

    def build(data: Path, *arguments: str) -> tuple[Any, ...]:
        from fairseq import tasks

        cfg = configure(data, *arguments)
        task = tasks.setup_task(cfg.task)
        model, criterion = task.build_model(cfg.model), task.build_criterion(cfg.criterion)
        task.load_dataset("train")
        dataset = task.dataset("train")
        indices = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=200)[0]
        return task, model, criterion, dataset.collater([dataset[index] for index in indices])

    return build


@pytest.fixture(scope="session")
def alphabet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences that go on through the alphabet: a hidden letter follows from its neighbours."""
    from toy import run

    letters = "abcdefghij"
    directory = tmp_path_factory.mktemp("alphabet")
    draw = random.Random(1)
    for split, count in (("train", 2000), ("valid", 200)):
        lines = []
        for _ in range(count):
            start, length = draw.randrange(10), draw.randint(4, 8)
            lines.append(" ".join(letters[(start + step) % 10] for step in range(length)) + "\n")
        (directory / f"{split}.aa").write_text("".join(lines))
    run(
        "fairseq-preprocess", "--only-source", "-s", "aa", "--trainpref", directory / "train",
        "--validpref", directory / "valid", "--destdir", directory / "data",
    )  # fmt: skip
    return directory / "data"
