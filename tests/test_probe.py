"""Probes: the loss at points along the last update."""

import math

import pytest
import torch
from torch import Tensor, nn

from lrenv.controller import Controller, run_interval
from lrenv.observation import FEATURES
from lrenv.policies.frozen import load_policy
from lrenv.probe import FACTORS, LossProbe
from lrenv.scheduler import LearnedLR
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.tasks import load_data

PROBE = [i for i, name in enumerate(FEATURES) if name.startswith("probe_")]


def noisy_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))


def test_losses_of_a_quadratic_by_hand():
    param = nn.Parameter(torch.tensor([3.0]))
    model = nn.Module()
    model.register_parameter("w", param)
    probe = LossProbe(model, lambda: param.square().sum())

    losses = probe([param.detach()[None]], [torch.tensor([[-0.5]])])

    assert losses[0].tolist() == [(3.0 - 0.5 * k) ** 2 for k in (0.0, *FACTORS)]
    assert param.item() == 3.0


@pytest.mark.parametrize("fails", [False, True])
def test_a_probe_leaves_no_trace(fails):
    model, x = noisy_model(), torch.randn(8, 3)
    model[2].eval()  # a mode of its own
    calls = []

    def loss() -> Tensor:
        calls.append(model(x).square().mean() + torch.rand(()))
        if fails and len(calls) == 3:
            raise ValueError("a broken batch")
        return calls[-1]

    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    params = [p.detach()[None] for p in model.parameters()]
    updates = [torch.full_like(p, 0.1) for p in params]

    if fails:
        with pytest.raises(ValueError, match="a broken batch"):
            LossProbe(model, loss)(params, updates)
    else:
        assert LossProbe(model, loss)(params, updates).shape == (1, 1 + len(FACTORS))

    assert len(calls) == (3 if fails else 1 + len(FACTORS))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(call.requires_grad for call in calls)


def test_probes_are_taken_ahead_of_decisions_alone(tiny_task):
    trainee = SingleTrainee(tiny_task.spec, load_data(tiny_task.data), 3)
    steps = []

    def probe(params, updates):
        steps.append(controller.step)
        return trainee.probe(params, updates)

    controller = Controller(40, trainee.traits, probe=probe)
    decisions = []
    while not controller.done:
        run_interval(trainee, controller)
        controller.close()
        if controller.deciding:
            decisions.append(controller.act(torch.zeros(1)).step)

    assert [step + 1 for step in steps] == decisions


def test_tokens_hold_the_roots_of_log_ratios(tiny_task):
    trainee = SingleTrainee(tiny_task.spec, load_data(tiny_task.data), 3)
    rows = iter([[2.0, 2.0, 1.0, 8.0, math.inf], [1.0, math.nan, 0.9, 1.0, 1e9]])
    controller = Controller(40, trainee.traits, probe=lambda p, u: torch.tensor([next(rows)]))
    while len(controller.observer.tokens) < 2:
        run_interval(trainee, controller)
        controller.close()
        if controller.deciding:
            controller.act(torch.zeros(1))

    first, second = (token[0, PROBE].tolist() for token in controller.observer.tokens)
    log = math.log
    assert first == pytest.approx([1, 0, -3 * log(2) ** 0.5, 3 * log(4) ** 0.5, 5], abs=1e-5)
    assert second == pytest.approx([1, 5, -3 * log(1 / 0.9) ** 0.5, 0, 5], abs=1e-4)


def test_without_a_probe_its_features_are_masked(tiny_task):
    def tokens(probed: bool) -> Tensor:
        trainee = SingleTrainee(tiny_task.spec, load_data(tiny_task.data), 3)
        controller = Controller(40, trainee.traits, probe=trainee.probe if probed else None)
        while not controller.done:
            run_interval(trainee, controller)
            controller.close()
            if controller.deciding:
                controller.act(torch.tensor([0.2]))
        return torch.cat(controller.observer.tokens[:-1])

    others = [i for i in range(len(FEATURES)) if i not in PROBE]
    with_probe, without = tokens(True), tokens(False)
    assert torch.equal(with_probe[:, others], without[:, others])
    assert without[:, PROBE].abs().max() == 0
    assert with_probe[:, PROBE[0]].min() == 1


def test_learned_lr_probes_as_a_controller_does(tiny_task):
    policy = load_policy("default")
    job, other = (SingleTrainee(tiny_task.spec, load_data(tiny_task.data), 3) for _ in range(2))
    scheduler = LearnedLR(job.optimizer, 40, policy, probe=LossProbe(job.model, job.next_loss))
    for _ in range(40):
        loss = job.backward()
        job.optimizer.step()
        state = scheduler.state_dict()
        scheduler.load_state_dict(state)  # between a probe and the decision that it is for
        scheduler.step(loss)

    controller = Controller(40, other.traits, probe=other.probe)
    while not controller.done:
        run_interval(other, controller)
        controller.close()
        if controller.deciding:
            controller.act(policy.act(controller))

    expected = torch.cat(controller.observer.tokens[:-1])
    seen = torch.tensor([list(d["features"].values()) for d in scheduler.decisions])
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)
    assert seen[:, PROBE[0]].min() == 1
