"""The path from optimizer steps to learning rates."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lrenv.action import CLASSIC_RANGE, PROBE_LR, START_RATIO
from lrenv.controller import Controller, run_interval
from lrenv.decisions import MAX_DECISIONS
from lrenv.errors import InputError
from lrenv.observation import FEATURES
from lrenv.trainees.batched import BatchedTrainee
from lrenv.trainees.mlp import MLPSpec
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.traits import OptimizerTraits

SPEC = MLPSpec((8,), batch_size=8, total_steps=60)


class Losses:
    """Runs with given losses, whose first updates are 0.02 of their LR relative to the weights."""

    def __init__(self, losses: Tensor) -> None:
        self.losses, self.step = losses, 0
        self.traits = OptimizerTraits(*torch.zeros(3, len(losses)))
        self.params = [torch.ones(len(losses), 10, 10)]

    def parameters(self) -> list[Tensor]:
        return self.params

    def gradients(self) -> list[Tensor]:
        return [0.02 * torch.ones_like(p) for p in self.params]

    def backward(self) -> Tensor:
        self.step += 1
        return self.losses[:, self.step - 1]

    def update(self, lr: Tensor) -> None:
        self.params = [p - 0.02 * lr[:, None, None] for p in self.params]


def drive(run, controller: Controller, actions: Tensor, val: bool = False) -> list[Tensor]:
    """Train to the end by one action a decision, and return the LRs of the decisions."""
    lrs = []
    while not controller.done:
        run_interval(run, controller)
        controller.close(run.evaluate("val")[0] if val else None)
        if controller.deciding:
            action = actions[len(lrs)].expand(len(controller.lr))
            lrs.append(controller.act(action).lr)
    return lrs


def wavering(n: int) -> Tensor:
    return torch.tensor([0.3 * math.sin(2.0 * i) for i in range(n)])


@pytest.mark.parametrize("preset", ["scale-free", "classic"])
@pytest.mark.parametrize(
    "optimizer", [OptimizerSpec("sgd", 0.9), OptimizerSpec("adamw", weight_decay=0.1)]
)
def test_single_and_batched_runs_get_the_same_lrs(tiny_data, preset, optimizer):
    spec = replace(SPEC, optimizer=optimizer)
    single, batched = SingleTrainee(spec, tiny_data, 5), BatchedTrainee([spec], tiny_data, [5])
    controllers = [Controller(60, t.traits, preset=preset) for t in (single, batched)]

    one, many = (
        drive(trainee, controller, wavering(60), val=True)
        for trainee, controller in zip((single, batched), controllers, strict=True)
    )

    assert len(one) == controllers[0].plan.n_decisions
    torch.testing.assert_close(torch.cat(one), torch.cat(many), rtol=1e-3, atol=0)
    seen, other = (c.observer.padded()[:, : len(one)] for c in controllers)
    torch.testing.assert_close(seen, other, rtol=0, atol=5e-3)


def test_runs_in_lockstep_do_not_touch_each_other(tiny_data):
    specs = [
        replace(SPEC, optimizer=OptimizerSpec("sgd", momentum), init_scale=scale)
        for momentum, scale in [(0.0, 1.0), (0.9, 2.0)]
    ]
    together = BatchedTrainee(specs, tiny_data, [1, 2])
    joint = torch.stack(drive(together, Controller(60, together.traits, 2), wavering(60)), 1)

    for run, (spec, seed) in enumerate(zip(specs, [1, 2], strict=True)):
        alone = BatchedTrainee([spec], tiny_data, [seed])
        lrs = torch.stack(drive(alone, Controller(60, alone.traits), wavering(60)), 1)
        torch.testing.assert_close(joint[run], lrs[0], rtol=1e-3, atol=0)


def test_a_run_starts_at_an_update_of_the_start_ratio():
    run = Losses(torch.ones(1, 50))
    controller = Controller(50, run.traits)
    used = []
    while not controller.deciding:
        used.append(controller.lr.item())
        run_interval(run, controller)
        controller.close()

    assert used == pytest.approx([PROBE_LR, 100 * PROBE_LR, 1e4 * PROBE_LR])
    assert controller.lr.item() == pytest.approx(50 * START_RATIO, rel=0.01)


@pytest.mark.parametrize("preset", ["scale-free", "classic"])
@pytest.mark.parametrize("total_steps", [4, 47, 400])
def test_decisions_fall_at_the_ends_of_the_plan(preset, total_steps):
    run = Losses(torch.ones(1, total_steps))
    controller = Controller(total_steps, run.traits, preset=preset)
    plan, steps, flags = controller.plan, [], []
    for _ in plan.ends:
        run_interval(run, controller)
        flags.append(controller.deciding)
        controller.close()
        if controller.deciding:
            steps.append(controller.act(torch.zeros(1)).step)

    assert controller.done
    assert run.step == total_steps
    assert steps == list(plan.ends[plan.lead - 1 : -1])
    assert len(steps) == plan.n_decisions
    assert not any(flags)
    assert not controller.deciding
    assert not controller.measuring


def test_an_interval_ends_where_its_last_step_does():
    controller = Controller(40, Losses(torch.ones(1, 1)).traits)
    end = controller.plan.ends[0]
    params = [torch.ones(1, 2, 2)]
    ended = []
    for _ in range(end):
        assert not controller.done
        controller.before_update(params, params)
        controller.after_update(params)
        ended.append(controller.end_step(torch.ones(1)))

    assert ended == [False] * (end - 1) + [True]


def test_the_last_steps_of_an_interval_are_measured():
    controller = Controller(1000, Losses(torch.ones(1, 1)).traits)
    run, measured = Losses(torch.ones(1, 1000)), []
    before = controller._meter.before
    controller._meter.before = lambda step, *rest: (measured.append(step), before(step, *rest))
    drive(run, controller, torch.zeros(100))

    plan = controller.plan
    expected = [
        step
        for start, end in (plan.interval(i) for i in range(len(plan.ends)))
        for step in range(max(start, end - 4), end)
    ]
    assert measured == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_guard_cuts_the_lr_of_a_run_whose_loss_is_not_finite(bad):
    losses = torch.ones(2, 100)
    losses[1, 50] = bad
    run = Losses(losses)
    controller = Controller(100, run.traits, n_runs=2)
    decisions = []
    last = controller.lr
    while not controller.done:
        run_interval(run, controller)
        controller.close()
        if controller.deciding:
            before = controller.lr
            decision = controller.act(torch.full((2,), 0.5))
            decisions.append((decision, (decision.lr / before).log()))
            last = decision.lr

    hit = next(i for i, e in enumerate(controller.plan.ends) if e > 50) - controller.plan.lead + 1
    for i, (decision, change) in enumerate(decisions):
        guarded = i == hit
        assert decision.guarded.tolist() == [False, guarded]
        assert decision.action.tolist() == [0.5, 0.5]
        if i < 8:
            assert change.tolist() == pytest.approx([1.0, -2.0 if guarded else 1.0], abs=1e-4)
        if guarded:
            assert change[1].item() == pytest.approx(-2.0, abs=1e-4)
    assert last.isfinite().all()


@pytest.mark.parametrize("preset", ["scale-free", "classic"])
def test_a_decision_says_whether_a_bound_kept_the_lr_from_what_was_asked(preset):
    run = Losses(torch.ones(1, 400))
    controller = Controller(400, run.traits, preset=preset)
    found = []
    for action in (0.5, 1.5, 0.4, 0.45, -0.5):
        while not controller.deciding:
            run_interval(run, controller)
            controller.close()
        found.append(bool(controller.act(torch.tensor([action])).bounded))
        if action == 0.4:
            controller.stop_rising()

    assert found == [False, True, False, True, False]


def test_the_classic_guard_divides_by_ten():
    losses = torch.ones(1, 100)
    losses[0, 30] = math.nan
    run = Losses(losses)
    controller = Controller(100, run.traits, preset="classic")

    lrs = torch.cat(drive(run, controller, torch.zeros(10)))

    hit = next(i for i, e in enumerate(controller.plan.ends) if e > 30)
    middle = math.sqrt(CLASSIC_RANGE[0] * CLASSIC_RANGE[1])
    expected = [middle / 10 if i == hit else middle for i in range(len(lrs))]
    assert lrs.tolist() == pytest.approx(expected, rel=1e-4)


def test_a_classic_run_starts_with_one_step_at_the_lowest_lr():
    controller = Controller(100, Losses(torch.ones(1, 1)).traits, preset="classic")

    assert controller.lr.tolist() == pytest.approx([CLASSIC_RANGE[0]])
    assert controller.plan.ends[0] == 1


def test_weights_without_size_get_an_lr_that_moves_them():
    """Such as LoRA's B alone, or a head that starts at zero."""
    run = Losses(torch.ones(1, 100))
    run.params = [torch.zeros(1, 10, 10)]
    controller = Controller(100, run.traits)
    while not controller.deciding:
        run_interval(run, controller)
        controller.close()

    assert controller.lr.item() >= PROBE_LR


@pytest.mark.parametrize("preset", ["Classic", "", None])
def test_an_unknown_preset_is_refused(preset):
    with pytest.raises(InputError, match=rf"one of \('scale-free', 'classic'\), got {preset!r}"):
        Controller(100, Losses(torch.ones(1, 1)).traits, preset=preset)


@pytest.mark.parametrize("total_steps", [0, -5, True, 10.0])
def test_an_impossible_length_is_refused(total_steps):
    with pytest.raises(InputError, match=f"got {total_steps!r}; pass the number"):
        Controller(total_steps, Losses(torch.ones(1, 1)).traits)


@pytest.mark.parametrize("preset", ["scale-free", "classic"])
@pytest.mark.parametrize("stop", [2, 31, 77])
def test_state_saved_at_any_step_goes_on_with_the_same_lrs(scripted_run, tmp_path, preset, stop):
    """The state passes through a file that holds tensors and plain values alone."""
    run = scripted_run()
    controller = Controller(120, run.traits, preset=preset)
    lrs: list[list[float]] = [[], []]

    def go(controllers: list[Controller], until: int) -> None:
        while controllers[0].step < until:
            loss = run.backward()
            for c in controllers:
                c.before_update(run.parameters(), run.gradients())
            run.update(controllers[0].lr)
            for c, row in zip(controllers, lrs, strict=False):
                c.after_update(run.parameters())
                if c.end_step(loss):
                    c.close(loss)
                    if c.deciding:
                        c.act(torch.tensor([0.3 * math.sin(c.step)]))
                row.append(c.lr.item())

    go([controller], stop)
    torch.save(controller.state_dict(), tmp_path / "state.pt")
    resumed = Controller(120, run.traits, preset=preset)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    go([controller, resumed], 120)

    assert lrs[0][stop:] == lrs[1]
    assert len(set(lrs[1])) > 2
    assert torch.equal(resumed.observer.window.grad_norm, controller.observer.window.grad_norm)


@pytest.mark.parametrize("preset", ["scale-free", "classic"])
@pytest.mark.parametrize(("first", "at", "then"), [(100, 30, 400), (100, 99, 130), (400, 30, 60)])
@pytest.mark.parametrize("per_epoch", [None, 1, 20])
def test_a_run_gets_another_length(scripted_run, preset, first, at, then, per_epoch):
    run = scripted_run(n_layers=2)
    controller = Controller(first, run.traits, preset=preset, steps_per_epoch=per_epoch)
    whole = Controller(then, run.traits, preset=preset, steps_per_epoch=per_epoch)

    while not controller.done:
        loss = run.backward()
        for made in (controller, whole):
            made.before_update(run.parameters(), run.gradients())
        run.update(controller.lr)
        for made in (controller, whole):
            made.after_update(run.parameters())
            if made.end_step(loss):
                made.close()
                if made.deciding:
                    made.act(torch.tensor([0.05]))
        if controller.step == at:
            controller.replan(then)
            assert controller.measuring == whole.measuring

    assert controller.step == whole.step == then
    ends = controller.plan.ends
    assert ends == tuple(sorted(set(ends)))
    assert [e for e in ends if e > at] == [e for e in whole.plan.ends if e > at]
    if preset == "scale-free":
        seen, expected = (torch.cat(c.observer.tokens)[-5:] for c in (controller, whole))
        names = ("left", "log_left", "interval_share", "epochs", "epoch")
        columns = [FEATURES.index(name) for name in names]
        torch.testing.assert_close(seen[:, columns], expected[:, columns])
        assert len(controller.observer.tokens) <= MAX_DECISIONS + 1


def test_the_past_of_a_longer_run_is_thinned_to_what_it_would_have_been(scripted_run):
    tokens = {}
    for total in (200, 2000):
        run = scripted_run()
        controller = Controller(total, run.traits)
        while controller.step < 150:
            run_interval(run, controller)
            controller.close()
            if controller.deciding:
                controller.act(torch.zeros(1))
        if total == 200:
            controller.replan(2000)
        tokens[total] = torch.cat(controller.observer.tokens)

    assert len(tokens[200]) == pytest.approx(len(tokens[2000]), abs=3)
    left, share = FEATURES.index("left"), FEATURES.index("interval_share")
    assert tokens[200][-1, left].item() == pytest.approx(1 - 2 * 0.075, abs=0.01)
    shares = [tokens[total][-3:, share].mean().item() for total in (200, 2000)]
    assert shares[0] == pytest.approx(shares[1], rel=0.6)


def test_a_run_cannot_end_in_its_past(scripted_run):
    run = scripted_run()
    controller = Controller(100, run.traits)
    drive(run, controller, torch.zeros(100))

    with pytest.raises(InputError, match="at least 101 optimizer steps, got 100"):
        controller.replan(100)
