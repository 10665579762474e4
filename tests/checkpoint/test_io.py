"""Files that are read, refused, and written whole or not at all."""

import fractions
import io as bytes_io
import re
from pathlib import Path

import pytest
import torch

from zcode_plugin.checkpoint import io
from zcode_plugin.errors import UserError

STATE = {"model": {"weight": torch.arange(6.0).reshape(2, 3)}, "extra_state": {"epoch": 1}}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.pt"
    assert io.save(STATE, path) == path.stat().st_size
    return path


@pytest.mark.parametrize("read", [io.load, io.load_options])
def test_what_is_saved_is_loaded(good: Path, read: type(io.load)) -> None:
    state = read(good)
    assert state["extra_state"] == {"epoch": 1}
    assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])
    assert [path.name for path in good.parent.iterdir()] == ["good.pt"]


def test_options_of_the_old_format_are_read(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert io.load_options(tmp_path / "old.pt")["extra_state"] == {"epoch": 1}


def spoiled(good: bytes, how: str) -> bytes:
    """The bytes of a checkpoint, spoiled."""
    weight = STATE["model"]["weight"].numpy().tobytes()
    file = bytes_io.BytesIO()
    if how == "not of fairseq":
        torch.save({"weight": torch.ones(1)}, file)
    elif how == "foreign class":
        torch.save({"model": {"half": fractions.Fraction(1, 2)}}, file)
    return {
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "text": b"hello\n",
        "flipped bit": good.replace(weight, bytes([weight[0] ^ 1]) + weight[1:]),
    }.get(how, file.getvalue())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("empty", "{path}: .*no checkpoint, or not a whole one"),
        ("truncated", "{path}: .*no checkpoint, or not a whole one"),
        ("text", "{path}: .*no checkpoint, or not a whole one"),
        (
            "flipped bit",
            r"{path}: damaged \(archive/data/0 fails its checksum\); copy or save it again$",
        ),
        ("not of fairseq", "{path}: no fairseq checkpoint: it holds no model"),
        ("foreign class", "{path}: holds fractions.Fraction, which checkpoints may not hold"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(good: Path, how: str, message: str) -> None:
    path = good.with_name("bad.pt")
    path.write_bytes(spoiled(good.read_bytes(), how))
    with pytest.raises(UserError) as refusal:
        io.load(path)
    # In a regular expression "." is no line end: the whole message is one line.
    assert re.fullmatch(f"{message.format(path=re.escape(str(path)))}.*", str(refusal.value))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pt: No such file or directory"):
        io.load_options(tmp_path / "none.pt")


def test_a_failed_write_leaves_the_old_file(good: Path) -> None:
    before = good.read_bytes()
    with pytest.raises(TypeError, match="generator"):  # which cannot be pickled
        io.save({"model": (number for number in range(3))}, good)
    assert good.read_bytes() == before
    assert [path.name for path in good.parent.iterdir()] == ["good.pt"]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none/x\.pt cannot be written: "):
        io.save(STATE, tmp_path / "none" / "x.pt")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_too_little_memory_is_no_fault_of_the_file(error: Exception) -> None:
    with (
        pytest.raises(UserError, match=r"x\.pt needs more memory than there is"),
        io.well_formed(Path("x.pt")),
    ):
        raise error
