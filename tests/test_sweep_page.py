"""The page of a sweep: scales that fit its losses."""

import json

import pytest
from databases import trial

from lrenv.training.bench.sweep import Sweep
from lrenv.training.bench.sweep_page import write_sweep_page

SWEEP = Sweep(name="s", task="tiny", task_key="k", total_steps=40)


@pytest.mark.parametrize(
    ("losses", "titles"),
    [
        ((0.5, 0.25), {"log₁₀ validation loss", "validation loss, log scale"}),
        ((0.5, 0.0), {"validation loss"}),
        ((-0.5, 0.25), {"validation loss"}),
    ],
)
def test_the_page_draws_losses_that_have_no_logarithm(tmp_path, losses, titles):
    records = [
        trial(
            str(k),
            policy="k0_0.1+lrPolicy_FIX",
            parameters={"index": k},
            metrics={"val_loss": loss},
            curve={"step": [1.0], "val_loss": [loss], "lr": [0.0]},
        )
        for k, loss in enumerate(losses)
    ]
    page = write_sweep_page(tmp_path / "sweep.html", SWEEP, records).read_text()

    axes = ("log₁₀ validation loss", "validation loss, log scale", "validation loss")
    found = {axis for axis in axes if json.dumps(axis) in page}
    assert found == titles
    assert json.dumps("learning rate, log scale") in page
