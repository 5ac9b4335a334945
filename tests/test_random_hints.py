"""The benchmark of random hints: its folder belongs to one policy."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lrenv.errors import InputError

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import random_hints


def test_runs_of_another_policy_are_not_shown(tmp_path, tiny_task, monkeypatch):
    monkeypatch.setattr(random_hints, "unseen_tasks", lambda: {"tiny 0": tiny_task})
    settings = random_hints.Settings(seeds=1, output=tmp_path)
    random_hints.main(settings)
    first = (tmp_path / "results.json").read_text()

    monkeypatch.setattr(random_hints, "run", None)
    random_hints.main(settings)
    assert (tmp_path / "results.json").read_text() == first
    with pytest.raises(InputError, match="got policy='mlp' instead of 'default'"):
        random_hints.main(replace(settings, policy="mlp"))
