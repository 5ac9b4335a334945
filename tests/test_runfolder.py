"""Run folders: settings, results and training states."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from lrenv.errors import InputError
from lrenv.training.runfolder import (
    check_settings,
    read_json,
    read_state,
    read_tensors,
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

    with pytest.raises(
        InputError, match=rf"a state at {tmp_path}/a\.pt, got: Weights only load fa"
    ):
        read_state(tmp_path / "a.pt")


@pytest.mark.parametrize("length", [None, 0, 100, -1, "other"])
@pytest.mark.parametrize("kind", ["state", "tensors"])
def test_a_state_that_is_missing_or_damaged_is_named(tmp_path, kind, length):
    path = tmp_path / "file"
    write, read = {
        "state": (write_state, read_state),
        "tensors": (write_tensors, read_tensors),
    }[kind]
    write(path, {"x": torch.ones(100)})
    if length is None:
        path.unlink()
    else:
        path.write_bytes(b"other" if length == "other" else path.read_bytes()[:length])

    with pytest.raises(InputError, match=rf"Expected (a state|tensors) at {path}, got: .*; delete"):
        read(path)


def test_a_state_with_an_altered_byte_is_named(tmp_path):
    path = tmp_path / "a.pt"
    write_state(path, {"x": 1})
    key = b"X\x01\x00\x00\x00"
    assert path.read_bytes().count(key + b"x") == 1
    path.write_bytes(path.read_bytes().replace(key + b"x", key + b"\xff"))

    with pytest.raises(InputError, match=rf"Expected a state at {path}, got: .*; delete"):
        read_state(path)


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
