"""When an episode is over."""

import pytest
import torch

from lrenv.episode import DIVERGED_REWARD, Episode
from lrenv.rewards import build_reward
from lrenv.trainees.mlp import MLPSpec
from lrenv.trainees.single import SingleTrainee


@pytest.fixture
def trainee(tiny_data) -> SingleTrainee:
    return SingleTrainee(MLPSpec((8,), batch_size=16, total_steps=100), tiny_data, 0)


def start(trainee: SingleTrainee, preset: str) -> Episode[SingleTrainee]:
    episode = Episode(trainee, preset, [build_reward("improvement")])
    episode.start()
    return episode


@pytest.mark.parametrize("preset", ["scale-free", "classic"])
@pytest.mark.parametrize("val_loss", [float("nan"), float("inf")])
def test_a_validation_loss_that_is_not_finite_ends_it(trainee, monkeypatch, preset, val_loss):
    episode = start(trainee, preset)
    before = episode.step(torch.zeros(1))
    monkeypatch.setattr(trainee, "evaluate", lambda *_: torch.tensor([[val_loss], [0.0]]))

    outcome = episode.step(torch.zeros(1))

    assert (before.terminated.tolist(), before.diverged.tolist()) == ([False], [False])
    assert before.rewards.item() != DIVERGED_REWARD
    assert outcome.rewards.tolist() == [DIVERGED_REWARD]
    assert (outcome.terminated.tolist(), outcome.diverged.tolist()) == ([True], [True])
    assert outcome.train_loss.isfinite().all()


def test_a_loss_that_is_not_finite_within_an_interval_ends_it(trainee, monkeypatch):
    episode, backward = start(trainee, "classic"), trainee.backward

    def fail_once() -> torch.Tensor:
        loss = backward()
        return loss if episode.controller.step != 7 else torch.full_like(loss, torch.nan)

    monkeypatch.setattr(trainee, "backward", fail_once)

    outcome = episode.step(torch.zeros(1))

    assert outcome.rewards.tolist() == [DIVERGED_REWARD]
    assert outcome.diverged.tolist() == [True]
    assert outcome.train_loss.isfinite().all()
