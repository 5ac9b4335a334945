"""The benchmark of LR levels: what shifts do to a run, and what a model makes of it."""

import sys
from pathlib import Path

import pytest
import torch

from lrenv.policies.frozen import load_policy

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import lr_levels


def test_shifted_actions_move_the_lr_their_way_and_the_first_run_is_as_it_was(tiny_task):
    settings = lr_levels.Settings(shifts=(-0.3, 0.0, 0.3), shifted_from=3)
    shifted = lr_levels.run_shifted(tiny_task, 0, load_policy("default").actor, settings)

    same, lower, also_same, higher = shifted.log_lrs.tolist()
    assert lower < same == also_same == 0.0 < higher
    assert shifted.changes[[0, 2]].tolist() == [0.0, 0.0]
    assert shifted.changes[[1, 3]].abs().min() > 0


@pytest.mark.parametrize("model", ["token", "hidden"])
def test_a_model_gains_where_its_inputs_tell_which_shift_is_best(model):
    generator = torch.Generator().manual_seed(0)
    told = torch.randn(200, 1, generator=generator)
    changes = torch.cat([torch.zeros(200, 1), 0.1 * told, -0.1 * told], 1)

    best = changes.amin(1).mean()
    assert lr_levels._chosen(model, told.numpy(), changes).mean() < 0.8 * best
    nothing = torch.randn(200, 1, generator=generator)
    assert lr_levels._chosen(model, nothing.numpy(), changes).mean() > 0.3 * best
