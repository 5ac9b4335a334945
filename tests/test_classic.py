"""The policies of the source: what a run folder exports."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lrenv.errors import InputError
from lrenv.training.classic import train_classic
from lrenv.training.settings import ClassicSettings

SETTINGS = ClassicSettings(
    total_steps=48,
    demonstrations=1,
    clone_steps=1,
    critic_steps=1,
    batch_size=3,
    n_envs=1,
    n_epochs=1,
    total_timesteps=0,
)


@pytest.mark.parametrize(
    "name", ["demonstrations", "batch_size", "n_envs", "n_epochs", "total_timesteps"]
)
def test_counts_that_cannot_be_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"Expected {name} of at least"):
        train_classic(replace(SETTINGS, output=tmp_path, **{name: -1}))
    assert not list(tmp_path.iterdir())


def test_the_clone_stays_a_clone_behind_ppo(tmp_path: Path) -> None:
    settings = replace(SETTINGS, output=tmp_path)
    clone = train_classic(settings)
    before = json.loads(clone.read_text())
    tuned = train_classic(replace(settings, total_timesteps=48))

    assert train_classic(settings) == clone
    assert json.loads(clone.read_text()) == before
    assert before["ppo_timesteps"] == 0
    assert tuned.name == "cosine-ppo.json"
    assert json.loads(tuned.read_text())["ppo_timesteps"] > 0
