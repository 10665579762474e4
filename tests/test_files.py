"""Files and folders appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from zcode_plugin.errors import UserError
from zcode_plugin.files import whole_file, whole_folder, write_texts


def _fill_the_disk(path: Path) -> None:
    with whole_folder(path) as partial:
        (partial / "file").write_text("new")
        raise OSError(28, "No space left on device")


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with whole_folder(path) as partial:
        (partial / "file").write_text("old")
        assert not path.exists()
    with pytest.raises(UserError, match=r"folder cannot be written: No space left on device"):
        _fill_the_disk(path)
    assert (path / "file").read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    with whole_folder(path) as partial:
        (partial / "other").write_text("new")
    assert [item.name for item in path.iterdir()] == ["other"]
    assert list(path.parent.iterdir()) == [path]


def test_errors_of_other_files_keep_their_names(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with (
        pytest.raises(UserError, match=r"folder cannot be written: No such file"),
        whole_folder(path) as partial,
    ):
        (partial / "no such folder" / "file").touch()
    with pytest.raises(FileNotFoundError, match="nowhere"), whole_folder(path):
        (tmp_path / "nowhere").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_link_leads_to_the_folder_that_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk" / "old").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "old")
    with whole_folder(link) as partial:
        (partial / "file").touch()
    assert link.is_symlink()
    assert [item.name for item in link.iterdir()] == ["file"]
    assert [item.name for item in (tmp_path / "disk").iterdir()] == ["old"]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["disk", "link"]


def test_what_a_killed_process_left_is_removed_and_that_of_a_running_one_is_not(
    tmp_path: Path,
) -> None:
    for owner in ("1", "mine", "999999999"):  # process 1 always runs
        (tmp_path / f".data.partial-{owner}").mkdir()
    with whole_folder(tmp_path / "data"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(".data.partial-1", ".data.partial-mine", "data")
    ]


def test_a_link_leads_to_the_file_that_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "old").write_text("old")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "old")
    write_texts({link: "new"})
    assert (link.is_symlink(), link.read_text()) == (True, "new")
    with whole_file(link) as file:
        file.write(b"newer")
    assert (link.is_symlink(), link.read_text()) == (True, "newer")
    assert [item.name for item in (tmp_path / "disk").iterdir()] == ["old"]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["disk", "link"]
