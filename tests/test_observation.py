"""What a policy sees: scale-free, complete, finite."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from lrenv.action import PROBE_LR
from lrenv.classic_observation import CLASSIC_CLIP
from lrenv.controller import Controller, run_interval
from lrenv.decisions import MAX_DECISIONS
from lrenv.observation import (
    CLIP,
    FEATURES,
    ScaleFreeObserver,
)
from lrenv.statistics import StepStats
from lrenv.traits import OptimizerTraits, traits_of
from lrenv.window import WINDOW, Interval

COLUMN = {name: i for i, name in enumerate(FEATURES)}
VAL = [COLUMN[name] for name in ("val_given", "val_loss", "val_over_best")]


def act(index: int) -> Tensor:
    """A wavering rise and fall of the LR."""
    return torch.tensor([0.5 * math.sin(index) + (0.4 if index < 10 else -0.2)])


def observe(run, total_steps=120, *, val=None, preset="scale-free", first_lr=None):
    """Train a run by fixed actions; ``val`` maps a decision's number to its validation loss."""
    controller = Controller(total_steps, run.traits, preset=preset)
    if first_lr is not None:
        controller.lr = torch.tensor([first_lr])
    index = 0
    while not controller.done:
        run_interval(run, controller)
        controller.close(None if val is None else torch.tensor([val(index)]))
        if controller.deciding:
            controller.act(act(index))
            index += 1
    return controller


def tokens(controller: Controller) -> Tensor:
    return torch.cat(controller.observer.tokens)


def interval(losses: list[float], *, start: int = 0, val: float | None = None, layers: int = 3):
    """An interval of 100 steps in all, of which the last one is measured."""
    ones, layered = torch.ones(1), torch.arange(1.0, layers + 1)[None]
    stats = StepStats(layered, layered, 1e-3 * layered, 1e-3 * ones, *[ones] * 6)
    given = None if val is None else torch.tensor([val])
    return Interval(start, 100, torch.tensor([losses]), ones, [stats], given)


def observer() -> ScaleFreeObserver:
    return ScaleFreeObserver(OptimizerTraits(torch.ones(1), torch.ones(1), torch.tensor([0.9])))


def value(made: ScaleFreeObserver, name: str) -> float:
    return made.tokens[-1][0, COLUMN[name]].item()


@hypothesis_settings(max_examples=10)
@given(log_scale=st.integers(-10, 10))
def test_tokens_do_not_depend_on_the_unit_of_the_loss(scripted_run, log_scale):
    scale = 2.0**log_scale
    base = observe(scripted_run(), val=lambda i: 3.0 / (i + 2), first_lr=PROBE_LR)
    other = observe(
        scripted_run(scale=scale), val=lambda i: 3.0 * scale / (i + 2), first_lr=PROBE_LR / scale
    )

    torch.testing.assert_close(tokens(other), tokens(base), rtol=0, atol=1e-4)
    assert tokens(base).std(0)[COLUMN["loss"]] > 0.05


@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_tokens_do_not_depend_on_a_far_unit_of_the_loss(scripted_run, scale):
    base = observe(scripted_run(), first_lr=PROBE_LR)
    other = observe(scripted_run(scale=scale), first_lr=PROBE_LR / scale)

    torch.testing.assert_close(tokens(other), tokens(base), rtol=0, atol=2e-3)


@pytest.mark.parametrize(("momentum", "factor"), [(0.0, 1.05), (0.9, 3.0)])
def test_the_start_lr_follows_the_unit_of_the_loss(scripted_run, momentum, factor):
    """Momentum builds up over the probes, so that the last one sees a larger update."""
    units = []
    for scale in [10.0**k for k in range(-2, 6)]:
        run = scripted_run(scale=scale, momentum=momentum)
        controller = Controller(100, run.traits)
        while not controller.deciding:
            run_interval(run, controller)
            controller.close()
        units.append(scale * controller.lr.item())

    assert max(units) < factor * min(units)


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4])
def test_tokens_do_not_depend_on_the_number_of_layers(scripted_run, n_layers):
    base = observe(scripted_run(n_layers=n_layers))
    doubled = observe(scripted_run(n_layers=n_layers, copies=2))

    assert len(doubled.observer.window.grad_norm[0, 0]) == 2 * n_layers
    torch.testing.assert_close(tokens(doubled), tokens(base), rtol=0, atol=1e-4)


def test_a_run_of_any_length_and_depth_has_one_shape(scripted_run):
    shapes = set()
    for total_steps, n_layers in [(4, 1), (60, 5), (900, 2)]:
        run = scripted_run(n_layers=n_layers)
        controller = Controller(total_steps, run.traits)
        while not controller.deciding:
            run_interval(run, controller)
            controller.close()
        shapes.add(tuple(controller.observer.padded().shape))

    assert shapes == {(1, MAX_DECISIONS, len(FEATURES))}


def test_the_padded_observation_holds_the_tokens_and_zeros_behind(scripted_run):
    controller = observe(scripted_run(), 40)
    seen, padded = tokens(controller), controller.observer.padded()[0]

    assert seen.shape == (len(controller.observer.tokens), len(FEATURES))
    assert torch.equal(padded[: len(seen)], seen)
    assert padded[len(seen) :].abs().max() == 0
    assert padded[:, COLUMN["valid"]].sum() == len(seen)


def test_the_observation_at_the_end_of_a_long_run_has_its_shape(scripted_run):
    controller = observe(scripted_run(n_layers=1), 1700)

    assert controller.plan.n_decisions == MAX_DECISIONS
    assert controller.observer.padded().shape == (1, MAX_DECISIONS, len(FEATURES))


def test_features_have_names_of_their_own():
    assert len(set(FEATURES)) == len(FEATURES)


def test_losses_by_hand():
    made = observer()
    made.update(interval([4.0]), torch.ones(1))
    made.update(interval([4.0, 4.0, 1.0, 1.0], start=1), torch.ones(1))
    made.update(interval([5.0, 5.0], start=5), torch.ones(1))
    second, third = (made.tokens[i][0] for i in (1, 2))

    level = math.log(2.5 / 4)
    spread = 2 * math.log(4.0) / math.sqrt(3.0)
    expected = {
        "loss": level / 2,
        "loss_change": 5 * level,
        "loss_over_best": 0.0,
        "loss_slope": max(5 * math.log(1 / 4), -CLIP),
        "loss_spread": 2 * spread / 2,
    }
    assert {k: second[COLUMN[k]].item() for k in expected} == pytest.approx(expected, abs=1e-5)
    assert third[COLUMN["loss_over_best"]].item() == pytest.approx(2 * math.log(2), abs=1e-5)
    assert third[COLUMN["loss_slope"]].item() == pytest.approx(0.0, abs=1e-6)


def test_progress_lr_and_window_by_hand():
    made = observer()
    made.update(interval([1.0]), torch.tensor([math.exp(-2.0)]))
    made.update(interval([2.0] * 9, start=1), torch.ones(1))

    assert value(made, "left") == pytest.approx(0.8)
    assert value(made, "log_left") == pytest.approx(1 + math.log10(0.9), abs=1e-6)
    assert value(made, "interval_share") == pytest.approx(1.8)
    assert value(made, "optimizer_momentum") == pytest.approx(1.0, abs=1e-5)
    assert value(made, "lr") == pytest.approx(0.5)
    assert value(made, "lr_change") == 0.0
    # The last of 8 patches of 64 steps: 55 with the first loss of 1, 9 with a loss of 2 as now.
    last_patch = 55 / 64 * math.log(1 / 2)
    assert value(made, "window_loss_7") == pytest.approx(last_patch, abs=1e-5)
    assert value(made, "window_loss_0") == pytest.approx(math.log(1 / 2), abs=1e-5)
    assert value(made, "update_ratio_max") == pytest.approx(math.log10(3) / 2, abs=1e-5)
    assert value(made, "update_ratio_median") == pytest.approx(math.log10(2) / 2, abs=1e-5)
    assert value(made, "grad_norm_median") == pytest.approx(0.0, abs=1e-6)


def test_geometry_by_hand():
    """Two steps back and forth in nine: a path of 1 + 9 · 2 and a distance of 0.5."""
    made, first = observer(), interval([1.0])
    made.update(first, torch.ones(1))
    cosines = [(-0.36, 0.09), (math.nan, 0.09)]
    stats = [
        replace(
            first.stats[0],
            momentum_cos=torch.tensor([a]),
            gradient_cos=torch.tensor([b]),
            param_norm=torch.tensor([math.exp(0.1)]),
            update_norm=torch.tensor([2.0]),
            distance=torch.tensor([0.5]),
        )
        for a, b in cosines
    ]
    made.update(replace(interval([1.0] * 9, start=1), stats=stats), torch.ones(1))

    expected = {
        "momentum_cos": -0.6,
        "gradient_cos": 0.3,
        "descent_cos": 1.0,
        "weight_growth": 0.2,
        "distance": (math.log10(0.5) + 1) / 2,
        "straightness": math.log10(0.5 / 19 + 1e-4) + 1,
        "dog": math.log10(0.5 / math.sqrt(1 + 9 * 4) + 1e-4),
    }
    assert {name: value(made, name) for name in expected} == pytest.approx(expected, abs=1e-5)


def test_a_missing_validation_loss_is_masked():
    made = observer()
    for start, val in [(0, 2.0), (1, None), (2, 1.0), (3, 3.0)]:
        made.update(interval([1.0], start=start, val=val), torch.ones(1))
    seen = torch.cat(made.tokens)[:, VAL]

    expected = [
        [1.0, 0.0, 0.0],
        [0.0, 0.0, 0.0],
        [1.0, math.log(0.5) / 2, 0.0],
        [1.0, math.log(1.5) / 2, CLIP],
    ]
    torch.testing.assert_close(seen, torch.tensor(expected), rtol=0, atol=1e-6)


def test_the_validation_loss_changes_its_own_features_alone(scripted_run):
    without = tokens(observe(scripted_run()))
    given = tokens(observe(scripted_run(), val=lambda i: 1.0 / (i + 1)))
    others = [i for i in range(len(FEATURES)) if i not in VAL]

    assert torch.equal(without[:, others], given[:, others])
    assert without[:, VAL].abs().max() == 0
    assert given[:, COLUMN["val_given"]].min() == 1


@pytest.mark.parametrize("preset", ["scale-free", "classic"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("steps", [(0,), (1, 2), tuple(range(8, 30)), tuple(range(60))])
def test_observations_stay_finite(scripted_run, preset, bad, steps):
    run = scripted_run(bad_loss=dict.fromkeys(steps, bad))
    controller = observe(run, 60, preset=preset, val=lambda i: bad if i % 2 else 1.0)
    bound = CLIP if preset == "scale-free" else CLASSIC_CLIP

    seen = controller.observer.padded()
    assert seen.isfinite().all()
    assert seen.abs().max() <= bound


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, 1e38])
def test_gradients_of_any_size_keep_observations_finite(scripted_run, bad):
    run = scripted_run()
    run.gradients = lambda: [torch.full_like(g, bad) for g in run.grads]

    assert tokens(observe(run, 40)).isfinite().all()


def test_signals_that_are_not_finite_at_first_are_related_to_the_first_that_are():
    made, bad = observer(), interval([math.nan, math.nan], val=math.nan)
    unknown = torch.full((1, 3), math.nan)
    stats = replace(bad.stats[0], grad_norm=unknown, lc=unknown, update_norm=unknown[:, 0])
    made.update(replace(bad, stats=[stats]), torch.ones(1))
    assert value(made, "val_given") == 0
    made.update(interval([2.0, 2.0], start=2, val=3.0), torch.ones(1))
    assert value(made, "loss") == value(made, "val_loss") == 0
    made.update(interval([4.0, 4.0], start=4, val=6.0), torch.ones(1))

    assert value(made, "loss") == pytest.approx(math.log(2) / 2)
    assert value(made, "val_loss") == pytest.approx(math.log(2) / 2)
    assert value(made, "grad_norm_median") == pytest.approx(0.0, abs=1e-6)
    assert value(made, "straightness") != 0


def test_a_loss_that_is_not_finite_does_not_look_like_the_best():
    made = observer()
    made.update(interval([1.0]), torch.ones(1))
    made.update(interval([math.inf, math.inf], start=1), torch.ones(1))

    assert value(made, "loss") > 0
    assert value(made, "loss_over_best") > 0


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: torch.optim.SGD(p, 0.1), (1, 0, 0)),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), (1, 0, 0.9)),
        (lambda p: torch.optim.Adam(p, betas=(0.8, 0.99)), (1, 1, 0.8)),
        (lambda p: torch.optim.AdamW(p), (1, 1, 0.9)),
        (lambda p: torch.optim.Rprop(p), (0, 0, 0)),
        (lambda p: torch.optim.RMSprop(p, momentum=0.5), (1, 1, 0.5)),
    ],
)
def test_traits_of_torch_optimizers(make, expected):
    traits = traits_of(make([torch.nn.Parameter(torch.zeros(1))]))

    seen = (traits.known, traits.adaptive, traits.momentum)
    assert [t.item() for t in seen] == pytest.approx(list(expected))
    assert {t.shape for t in seen} == {(1,)}


def test_traits_of_an_optimizer_with_tensor_settings():
    group = {"betas": (torch.tensor(0.9), torch.tensor(0.99))}
    fake = type("CapturableAdam", (SimpleNamespace,), {})(param_groups=[group])

    assert traits_of(fake).momentum.item() == pytest.approx(0.9)


def test_the_classic_observation_is_the_raw_window(scripted_run):
    run = scripted_run(n_layers=2)
    controller = observe(run, 30, preset="classic", val=lambda i: 5.0 + i)
    padded, window = controller.observer.padded(), controller.observer.window

    assert padded.shape == (1, WINDOW, 2 + 4)
    rows = padded[0, -30:]
    torch.testing.assert_close(rows[:, 0], 1 - torch.arange(1.0, 31) / 30)
    torch.testing.assert_close(rows[:, 1], window.loss[0])
    torch.testing.assert_close(rows[:, 3:5], window.grad_norm[0])
    torch.testing.assert_close(rows[:, 5], torch.log10(window.lr[0]))
    assert rows[0, 2] == 5
    assert torch.equal(padded[0, :-30], rows[:1].expand(WINDOW - 30, -1))


def test_the_classic_observation_repeats_the_loss_where_there_is_no_validation(scripted_run):
    padded = observe(scripted_run(), 30, preset="classic").observer.padded()

    assert torch.equal(padded[..., 2], padded[..., 1])


def test_state_goes_on_where_it_stopped():
    def feed(made: ScaleFreeObserver, starts: range) -> None:
        for start in starts:
            losses = [1.0 / (start + 1)]
            made.update(
                interval(losses, start=start, val=2.0), None if start < 2 else torch.ones(1)
            )

    for cut in (1, 5):
        whole, stopped, resumed = observer(), observer(), observer()
        feed(whole, range(9))
        feed(stopped, range(cut))
        resumed.load_state_dict(stopped.state_dict())
        feed(resumed, range(cut, 9))
        assert torch.equal(torch.cat(resumed.tokens), torch.cat(whole.tokens))
        assert torch.equal(resumed.window.loss, whole.window.loss)
