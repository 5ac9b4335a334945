"""Files that survive a kill."""

import os
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from lrenv.errors import InputError
from lrenv.training.runfolder import (
    check_settings,
    make_folder,
    read_json,
    read_state,
    read_tensors,
    write_atomic,
    write_json,
    write_state,
    write_tensors,
)


@dataclass(frozen=True)
class Settings:
    output: Path = Path("runs/a")
    seed: int = 0
    hours: float = 1.0
    peak: float = 0.1


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

    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, half)

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


def test_json_round_trip(tmp_path):
    data = {"a": [1, 2.5, None], "b": "ü", "c": float("inf")}
    write_json(tmp_path / "data.json", data)

    assert read_json(tmp_path / "data.json") == data


@pytest.mark.parametrize("text", [None, "", '{"a": 1', "\x00"])
def test_json_that_is_missing_or_damaged_is_named(tmp_path, text):
    path = tmp_path / "data.json"
    if text is not None:
        path.write_text(text)

    with pytest.raises(InputError, match=rf"Expected a JSON file at {path}, got:"):
        read_json(path)


def test_tensors_round_trip(tmp_path):
    grown = torch.arange(6.0).reshape(2, 3).T.requires_grad_()
    write_tensors(tmp_path / "a.safetensors", {"x": grown, "n": torch.tensor(3)})

    found = read_tensors(tmp_path / "a.safetensors")
    assert torch.equal(found["x"], grown)
    assert found["n"].item() == 3


def test_state_round_trip(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    write_state(tmp_path / "a.pt", {"optimizer": optimizer.state_dict(), "n": 3, "best": 0.5})

    found = read_state(tmp_path / "a.pt")
    assert (found["n"], found["best"]) == (3, 0.5)
    before, after = (s["state"][0]["exp_avg"] for s in (optimizer.state_dict(), found["optimizer"]))
    assert torch.equal(before, after)


def test_a_state_with_other_objects_is_refused(tmp_path):
    torch.save({"code": Settings()}, tmp_path / "a.pt")

    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        read_state(tmp_path / "a.pt")


def test_the_settings_of_a_run_are_kept(tmp_path):
    check_settings(tmp_path, Settings(), free={"output", "hours"})

    assert read_json(tmp_path / "settings.json") == {
        "output": "runs/a",
        "seed": 0,
        "hours": 1.0,
        "peak": 0.1,
    }


def test_the_budget_may_change_between_restarts(tmp_path):
    free = {"output", "hours"}
    check_settings(tmp_path, Settings(), free)
    check_settings(tmp_path, Settings(output=Path("b"), hours=2.0), free)

    assert read_json(tmp_path / "settings.json")["hours"] == 2.0


@pytest.mark.parametrize(("name", "value", "before"), [("seed", 1, 0), ("peak", 0.2, 0.1)])
def test_other_settings_are_refused(tmp_path, name, value, before):
    check_settings(tmp_path, Settings(), free={"hours"})

    with pytest.raises(
        InputError, match=f"{name}={value} instead of {before}; use another --output"
    ):
        check_settings(tmp_path, replace(Settings(), **{name: value}), free={"hours"})
    assert read_json(tmp_path / "settings.json")[name] == before
