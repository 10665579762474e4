"""Damaged checkpoints: one line, exit code 2, and the folder is as before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint.exported import build, checkpoint
from damage import DAMAGES, Damage, check_refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zcode_plugin.cli.main import main

# What writes, with {0} for the checkpoint and {1} for what is written.
VERBS = {
    "prune": ["{0}", "--keep", "2", "--by", "random", "--out", "{1}.pt"],
    "aggregate": ["{0}", "{0}", "--out", "{1}.pt"],
    "quantise": ["{0}", "--bits", "4", "--out", "{1}.pt"],
    "export": ["{0}", "--format", "huggingface", "--out", "{1}"],
    "average": ["{0}", "{0}", "--out", "{1}.pt"],
    "reshard": ["{0}", "--ranks", "1", "--out", "{1}.pt"],
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small checkpoint in both of torch's formats."""
    folder = tmp_path_factory.mktemp("good")
    state = checkpoint(*build(encoder_embed_dim=8, encoder_ffn_embed_dim=8))
    torch.save(state, folder / "zip.pt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    return {name: (folder / f"{name}.pt").read_bytes() for name in ("zip", "old")}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(verb=st.sampled_from([*VERBS]), damage=DAMAGES)
def test_damaged_files_are_refused_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    good: dict[str, bytes],
    verb: str,
    damage: Damage,
) -> None:
    bad, out = tmp_path / "bad.pt", tmp_path / "out"
    content = damage.of(good)
    bad.write_bytes(content)
    code = main([verb, *(part.format(bad, out) for part in VERBS[verb])])
    printed = capsys.readouterr().err
    check_refusal(verb, code, printed, damage)
    if code == 2:
        assert set(tmp_path.iterdir()) == {bad}
    assert bad.read_bytes() == content
    for path in tmp_path.glob("out*"):
        if path.is_dir():
            for inner in path.iterdir():
                inner.unlink()
            path.rmdir()
        else:
            path.unlink()


@pytest.mark.parametrize("verb", [*VERBS])
def test_a_good_file_is_read(tmp_path: Path, good: dict[str, bytes], verb: str) -> None:
    """So that the lines above are of the damage."""
    source = tmp_path / "good.pt"
    for content in good.values():
        source.write_bytes(content)
        force = (
            []
            if not (tmp_path / "out").exists() and not (tmp_path / "out.pt").exists()
            else ["--force"]
        )
        arguments = [part.format(source, tmp_path / "out") for part in VERBS[verb]]
        assert main([verb, *arguments, *force]) == 0


ODD = {
    "a number for a weight": {"model": {"a": 1, "b": torch.ones(2)}, "cfg": None},
    "numbers for dictionaries": {
        "model": {"a": torch.ones(2)}, "extra_state": 3, "optimizer_history": 5
    },
}  # fmt: skip


@pytest.mark.parametrize("odd", [*ODD])
@pytest.mark.parametrize("verb", [*VERBS, "merge"])
def test_files_of_other_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, odd: str
) -> None:
    """Whole files that fairseq did not save: done, or one line and nothing left."""
    path = tmp_path / ("bad-rank-0.pt" if verb == "merge" else "bad.pt")
    torch.save(ODD[odd], path)
    arguments = VERBS.get(verb, ["{0}", "--out", "{1}.pt"])
    code = main([verb, *(part.format(path, tmp_path / "out") for part in arguments)])
    printed = capsys.readouterr().err
    assert code in (0, 2)
    if code:
        assert printed.startswith(f"zcode {verb}: error: ")
        assert printed.count("\n") == 1
        assert list(tmp_path.iterdir()) == [path]
