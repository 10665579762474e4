"""A run that was killed at any moment goes on as if nothing had been."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from ranks import OPTIONS, Ranks, train, watch, watched

RUN = (
    "--expert-parallel-size", "2", "--multitask", "mt:1,dae:0.5", "--max-tokens", "300",
    "--moe-capacity-factor", "0.8", "--moe-jitter-eps", "0.01", "--moe-gating-dropout", "0.2",
    "--save-interval-updates", "5", "--keep-interval-updates", "2", "--disable-validation",
    "--clip-norm", "1.0", "--max-update", "42",
)  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Loss after each update."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(reversal, folder / "save", *RUN, world=2, inside=partial(watch, folder))
    return {entry["update"]: entry["loss"] for entry in watched(folder)}


@pytest.mark.parametrize(
    ("victims", "update"), [([1], 17), pytest.param([0, 1], 23, marks=pytest.mark.slow)]
)
def test_the_next_losses_are_those_of_the_run_that_was_not_killed(
    uninterrupted: dict[int, float],
    reversal: Path,
    tmp_path: Path,
    victims: list[int],
    update: int,
) -> None:
    ranks = Ranks([reversal, *OPTIONS, "--save-dir", tmp_path / "save", *RUN], 2, tmp_path / "log")
    ranks.wait_for(f'"num_updates": "{update}"')
    for victim in victims:
        ranks.kill(victim)
    assert 0 not in ranks.exit_codes()
    output = train(reversal, tmp_path / "save", *RUN, world=2, inside=partial(watch, tmp_path))
    losses = {entry["update"]: entry["loss"] for entry in watched(tmp_path)}
    assert f"@ {update - update % 5} updates" in output
    assert "(epoch 1" in output, "the epoch was not resumed in its middle"
    assert list(losses) == list(range(update - update % 5 + 1, 43))
    for number in list(losses)[:20]:
        assert losses[number] == uninterrupted[number], number
