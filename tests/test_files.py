"""Files that survive a kill."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lrenv.errors import InputError
from lrenv.files import make_folder, write_atomic


def test_a_folder_is_made_with_its_parents(tmp_path):
    made = make_folder(tmp_path / "a" / "b")

    assert made.is_dir()
    assert make_folder(made) == made
    assert list(made.iterdir()) == []


@pytest.mark.parametrize("below", ["", "deeper", "deeper/still"])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, below):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / below

    with pytest.raises(InputError, match=rf"can be written, got {path} \(.*\); name another one"):
        make_folder(path)


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)

    with pytest.raises(InputError, match=r"got .* \(Permission denied\); name another one or free"):
        make_folder(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def half(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(
        InputError, match=r"room to write .*file.txt, got: .*No space left on device"
    ):
        write_atomic(path, half)

    def silent(temporary: Path) -> None:
        raise OSError

    with pytest.raises(InputError, match=r"room to write .*file.txt, got: OSError"):
        write_atomic(path, silent)

    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_file_appears_at_once_and_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"

    def write(temporary: Path) -> None:
        assert temporary.parent == path.parent
        assert not path.exists()
        temporary.write_text("whole")

    write_atomic(path, write)

    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_reader_of_the_old_file_reads_it_to_its_end(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    with path.open() as reader:
        write_atomic(path, lambda temporary: temporary.write_text("new"))
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_others_may_read_what_safetensors_wrote(tmp_path):
    path = tmp_path / "a.safetensors"
    write_atomic(path, lambda temporary: save_file({"x": torch.ones(2)}, temporary))

    assert path.stat().st_mode & 0o777 == 0o644
