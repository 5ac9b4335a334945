"""The number of passes over the training data, as a policy sees it."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from test_observation import interval, observe, observer, tokens, value

from lrenv.controller import Controller
from lrenv.observation import ScaleFreeObserver, columns_of
from lrenv.trainees.specs import steps_per_epoch


def test_epochs_by_hand():
    made = ScaleFreeObserver(observer()._traits, steps_per_epoch=12.5)
    made.update(interval([1.0]), torch.ones(1))
    made.update(interval([2.0] * 24, start=1), torch.ones(1))

    seen = {name: value(made, name) for name in ("epochs_known", "epochs", "epoch")}
    assert seen == pytest.approx({"epochs_known": 1, "epochs": math.log(8), "epoch": math.log(3)})


@pytest.mark.parametrize(("per_epoch", "seen"), [(0.2, math.log(500)), (1e-9, 10.0)])
def test_thousands_of_epochs_can_be_told_apart(per_epoch, seen):
    made = ScaleFreeObserver(observer()._traits, steps_per_epoch=per_epoch)
    made.update(interval([1.0]), torch.ones(1))
    assert value(made, "epochs") == pytest.approx(seen)

    made.rescale(100, 200, room=80)
    assert value(made, "epochs") == pytest.approx(min(seen + math.log(2), 10.0))


def test_a_state_keeps_the_epoch_unless_a_new_one_is_given():
    saved = ScaleFreeObserver(observer()._traits, steps_per_epoch=20.0)
    saved.update(interval([1.0]), torch.ones(1))
    for own, expected in ((None, 20.0), (50.0, 50.0)):
        resumed = ScaleFreeObserver(observer()._traits, steps_per_epoch=own)
        resumed.load_state_dict(saved.state_dict())
        resumed.update(interval([2.0] * 9, start=1), torch.ones(1))
        assert value(resumed, "epochs") == pytest.approx(math.log(100 / expected))


def test_a_state_from_before_the_last_features_goes_on():
    saved = observer()
    saved.update(interval([1.0]), torch.ones(1))
    state = saved.state_dict()
    del state["steps_per_epoch"]
    state["tokens"] = [token[:, :-3] for token in state["tokens"]]
    made = observer()
    made.load_state_dict(state)

    assert torch.equal(made.padded(), saved.padded())


def test_unknown_epochs_are_masked(scripted_run):
    seen = tokens(observe(scripted_run()))

    assert seen[:, columns_of("epoch")].abs().max() == 0


@pytest.mark.parametrize("steps", [np.float64(12.5), np.int64(12), Fraction(25, 2)])
def test_numbers_of_all_kinds_are_saved(scripted_run, tmp_path, steps):
    saved = Controller(120, scripted_run().traits, steps_per_epoch=steps)
    torch.save(saved.state_dict(), tmp_path / "state.pt")
    resumed = Controller(120, scripted_run().traits)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))

    assert resumed.observer.state_dict()["steps_per_epoch"] == float(steps)


def test_a_batch_is_at_most_all_examples():
    assert steps_per_epoch(100, 8) == 12.5
    assert steps_per_epoch(100, 256) == 1.0
