"""Names of files and of experts' entries."""

from pathlib import Path

import pytest

from zcode_plugin.checkpoint.names import (
    ExpertKey,
    find_rank_files,
    gate_key,
    parse_expert_key,
    rank_of,
    with_rank,
    without_rank,
)


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        (
            "encoder.layers.1.moe_layer.experts.12.fc1.weight",
            ExpertKey("encoder.layers.1.moe_layer", 12, "fc1.weight"),
        ),
        ("moe_layer.experts.0.fc2.bias", ExpertKey("moe_layer", 0, "fc2.bias")),
        ("encoder.layers.1.moe_layer.gate.wg.weight", None),
        ("encoder.layers.1.experts.0.fc1.weight", None),
        ("encoder.layers.1.moe_layer.experts.x.fc1.weight", None),
        ("encoder.layers.1.fc1.weight", None),
    ],
)
def test_expert_keys(key: str, parts: ExpertKey | None) -> None:
    assert parse_expert_key(key) == parts
    if parts is not None:
        assert str(parts) == key


def test_gate_key() -> None:
    assert gate_key("decoder.layers.0.moe_layer") == "decoder.layers.0.moe_layer.gate.wg.weight"


@pytest.mark.parametrize(
    ("name", "rank", "whole"),
    [
        ("checkpoint_last-rank-0.pt", 0, "checkpoint_last.pt"),
        ("checkpoint_2_500-rank-13.pt", 13, "checkpoint_2_500.pt"),
        ("checkpoint.best_loss_3.21-rank-1.pt", 1, "checkpoint.best_loss_3.21.pt"),
        ("checkpoint_best.pt", None, "checkpoint_best.pt"),
        ("checkpoint-rank-x.pt", None, "checkpoint-rank-x.pt"),
    ],
)
def test_file_names(name: str, rank: int | None, whole: str) -> None:
    path = Path("run") / name
    assert rank_of(path) == rank
    assert without_rank(path) == Path("run") / whole
    if rank is not None:
        assert with_rank(Path("run") / whole, rank) == path


@pytest.mark.parametrize("name", ["checkpoint_last.pt", "checkpoint_last-rank-7.pt"])
def test_rank_files_are_found_by_any_name(tmp_path: Path, name: str) -> None:
    for other in (
        *("checkpoint_last-rank-10.pt", "checkpoint_last-rank-9.pt", "checkpoint_last.pt"),
        *("checkpoint_last-rank-9.pt.tmp", "checkpoint_best-rank-0.pt", "checkpoint_last2.pt"),
        "checkpoint_last-rank-02.pt",
    ):
        (tmp_path / other).touch()
    assert list(find_rank_files(tmp_path / name).items()) == [
        (9, tmp_path / "checkpoint_last-rank-9.pt"),
        (10, tmp_path / "checkpoint_last-rank-10.pt"),
    ]


def test_no_folder_has_no_rank_files(tmp_path: Path) -> None:
    assert find_rank_files(tmp_path / "nowhere" / "checkpoint_last.pt") == {}
