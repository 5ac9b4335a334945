"""Behavioural cloning with recovery labels."""

from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lrenv.controller import Controller
from lrenv.decisions import MAX_DECISIONS, DecisionPlan
from lrenv.errors import InputError
from lrenv.observation import FEATURES
from lrenv.policies.frozen import FrozenPolicy, build_actor
from lrenv.policies.network import Head
from lrenv.trainees.families import training_task
from lrenv.training import clone
from lrenv.training.clone import Demonstrations, collect, demonstrate, fit, label_error
from lrenv.training.expert_search import search_experts
from lrenv.training.settings import GeneralistSettings
from lrenv.traits import OptimizerTraits

SETTINGS = GeneralistSettings(
    family="balanced",
    longest_demonstration=5000,
    tasks=21,
    group=4,
    rounds=2,
    clone_steps=60,
    last_clone_steps=60,
    clone_batch=16,
    last_clone_lr=1e-3,
)


def new_actor() -> Head:
    torch.manual_seed(0)
    return Head("scale-free", len(FEATURES))


def toy(seed: int = 0, n: int = 16, t: int = 12) -> Demonstrations:
    """The label is half the third feature; the last third of the decisions is no data."""
    tokens = torch.randn(n, t, len(FEATURES), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(n, t)
    mask[:, 2 * t // 3 :] = 0.0
    return Demonstrations(tokens, 0.5 * tokens[..., 2].clamp(-1, 1), mask)


@torch.no_grad()
def error(actor: Head, data: Demonstrations) -> float:
    losses = F.smooth_l1_loss(actor(data.tokens), data.labels, reduction="none", beta=0.1)
    return ((losses * data.mask).sum() / data.mask.sum()).item()


def weights(actor: Head) -> Tensor:
    return torch.nn.utils.parameters_to_vector(actor.parameters()).detach().clone()


def test_fitting_reduces_the_error_on_labelled_runs():
    actor, data = new_actor(), toy()
    before = error(actor, data)

    settings = replace(SETTINGS, clone_steps=120, clone_lr=3e-3)
    found = fit(actor, data, data, settings, 0, MagicMock())

    assert error(actor, data) < 0.4 * before
    assert found == pytest.approx(error(actor, data), rel=1e-4)


def test_fitting_reads_real_decisions_alone():
    fitted = []
    for junk in (0.0, 100.0):
        actor, data = new_actor(), toy()
        labels = torch.where(data.mask > 0, data.labels, junk)
        junked = replace(data, labels=labels)
        fit(actor, junked, junked, replace(SETTINGS, clone_steps=5), 0, MagicMock())
        fitted.append(weights(actor))

    assert torch.equal(*fitted)
    assert not torch.equal(fitted[0], weights(new_actor()))


def test_fitting_repeats():
    fitted = []
    for seed in (0, 0, 1):
        actor = new_actor()
        fit(actor, toy(), toy(), replace(SETTINGS, clone_steps=5, seed=seed), 0, MagicMock())
        fitted.append(weights(actor))

    assert torch.equal(fitted[0], fitted[1])
    assert not torch.equal(fitted[0], fitted[2])


def test_fitting_writes_its_loss_by_step_over_all_rounds():
    writer = MagicMock()
    fit(new_actor(), toy(), toy(), SETTINGS, 1, writer)

    calls = [call.args for call in writer.add_scalar.call_args_list]
    assert [(name, step) for name, _, step in calls] == [
        ("losses/clone", 60),
        ("losses/clone", 80),
        ("losses/clone", 100),
        ("losses/clone_held_out", 119),
    ]


def test_the_weights_that_do_best_on_tasks_held_out_are_kept(monkeypatch):
    monkeypatch.setattr(clone, "_CHECK_EVERY", 2)
    actor, data, writer = new_actor(), toy(), MagicMock()
    opposite = replace(data, labels=-data.labels)
    found = fit(actor, data, opposite, replace(SETTINGS, clone_steps=20), 0, writer)

    calls = [call.args for call in writer.add_scalar.call_args_list]
    errors = [value for name, value, _ in calls if name == "losses/clone_held_out"]
    assert len(errors) == 10
    assert found == min(errors) < errors[-1]
    assert label_error(actor, opposite) == pytest.approx(found)


def test_the_last_runs_are_split_off():
    data = toy(n=5)
    first, last = data.split(2)

    assert torch.equal(first.tokens, data.tokens[:3])
    assert torch.equal(last.labels, data.labels[3:])


def test_demonstrations_join():
    both = Demonstrations.join([toy(0, n=3), toy(1, n=2)])

    assert both.tokens.shape == (5, 12, len(FEATURES))
    assert torch.equal(both.labels[3:], toy(1, n=2).labels)


@pytest.mark.parametrize("with_actor", [False, True])
def test_a_task_is_demonstrated(tiny_task, with_actor):
    actor = new_actor() if with_actor else None
    data = demonstrate(tiny_task, search_experts(tiny_task), 1, actor, SETTINGS)
    plan = Controller(tiny_task.spec.total_steps, OptimizerTraits(*torch.zeros(3, 1))).plan

    assert data.tokens.shape == (4, MAX_DECISIONS, len(FEATURES))
    assert data.mask.sum(1).tolist() == [plan.n_decisions] * 4
    assert torch.equal(data.tokens[..., 0], data.mask)
    assert data.labels.abs().max() <= 1.0
    assert (data.labels * (1 - data.mask)).abs().max() == 0
    assert data.labels.std() > 0.05


def test_demonstrations_follow_the_seed(tiny_task):
    search = search_experts(tiny_task)
    first, again, other = (
        demonstrate(tiny_task, search, seed, None, SETTINGS) for seed in (1, 1, 2)
    )

    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)


def acted(actor: Head | None, n_runs: int, n_decisions: int) -> tuple[Tensor, list[Tensor]]:
    """Actions ``(n_decisions, n_runs)`` and labels where every run has the tuned expert's LR."""
    controller = MagicMock()
    controller.step, controller.plan = 5, DecisionPlan(6, (6,), 0, 1)
    controller.lr = torch.ones(n_runs)
    generator = torch.Generator().manual_seed(0)
    demonstrator = clone._Demonstrator(actor, torch.zeros(10), n_runs, generator)
    token = torch.zeros(n_runs, len(FEATURES))
    return torch.stack([demonstrator(token, controller) for _ in range(n_decisions)]), (
        demonstrator.labels
    )


def test_a_third_of_the_runs_leaves_the_start_for_a_wrong_lr():
    actions, labels = acted(None, 3000, 12)

    early, late = actions[3], actions[10]
    share = 0.33 / 2 * 7 / 8
    assert (early == -1.0).float().mean().item() == pytest.approx(share, abs=0.02)
    assert (early == 0.5).float().mean().item() == pytest.approx(share, abs=0.02)
    assert ((late == -1.0) | (late == 0.5)).sum() == 0
    assert torch.stack(labels).abs().max() == 0


def test_half_of_the_runs_aim_at_another_lr_than_the_expert_for_some_time():
    actions, labels = acted(None, 3000, 40)

    aims = actions[20:].median(0).values
    assert (aims.abs() < 0.1).float().mean().item() == pytest.approx(0.55, abs=0.1)
    assert aims.min() < -0.9
    assert aims.max() < 0.6
    same = torch.corrcoef(torch.stack([actions[20], actions[21], actions[39]]))
    assert same[0, 1] > 0.7
    assert same[0, 2] < same[0, 1]
    assert torch.stack(labels).abs().max() == 0


def test_half_of_the_runs_are_the_policys_own():
    actor = new_actor()
    with torch.no_grad():
        actor.head.weight.zero_()
        actor.head.bias.fill_(0.7)
    actions, labels = acted(actor, 3000, 40)

    means = actions.median(0).values
    # In three runs of four the policy takes most of the decisions.
    assert ((means - 0.7).abs() < 0.3).float().mean().item() == pytest.approx(0.75, abs=0.07)
    assert (means < 0.3).float().mean() > 0.1
    assert torch.stack(labels).abs().max() == 0


@pytest.fixture
def demonstrated(monkeypatch):
    """Toy demonstrations in place of real ones; the seeds that were asked for."""
    seeds: list[int] = []

    def demonstrate(task, search, seed, actor, settings):
        seeds.append(seed)
        return toy(seed, n=2)

    monkeypatch.setattr(clone, "search_experts", MagicMock())
    monkeypatch.setattr(clone, "demonstrate", demonstrate)
    return seeds


def test_demonstrations_are_gathered_in_chunks_and_not_twice(tmp_path, demonstrated):
    first = collect(tmp_path, 0, None, SETTINGS)
    files = sorted(p.name for p in (tmp_path / "demonstrations").iterdir())
    asked = list(demonstrated)
    (tmp_path / "demonstrations/round0-20.safetensors").unlink()
    again = collect(tmp_path, 0, None, SETTINGS)

    assert files == ["round0-0.safetensors", "round0-20.safetensors"]
    assert len(first.tokens) == 2 * 21
    assert asked == list(range(21))
    assert demonstrated == [*range(21), 20]
    assert torch.equal(first.tokens, again.tokens)


def test_long_runs_are_not_demonstrated(tmp_path, demonstrated):
    lengths = [training_task(i, SETTINGS.family).spec.total_steps for i in range(21)]
    longest = sorted(lengths)[10]
    short = [i for i, length in enumerate(lengths) if length <= longest]
    found = collect(tmp_path, 0, None, replace(SETTINGS, longest_demonstration=longest))

    assert demonstrated == short
    assert 0 < len(short) < 21
    assert len(found.tokens) == 2 * len(short)
    with pytest.raises(InputError, match="Expected tasks of at most 4 steps, got none"):
        collect(tmp_path, 0, None, replace(SETTINGS, longest_demonstration=4))


def test_rounds_have_seeds_of_their_own(tmp_path, demonstrated):
    for round_ in range(2):
        collect(tmp_path, round_, None, replace(SETTINGS, seed=3))

    assert len(set(demonstrated)) == 42


def test_cloning_goes_on_after_the_last_complete_round(tmp_path, demonstrated, monkeypatch):
    settings, whole = replace(SETTINGS, clone_steps=3, last_clone_steps=3), new_actor()
    clone.clone(tmp_path, whole, settings, MagicMock())
    (tmp_path / "clone-round1.pt").unlink()
    rounds = []
    monkeypatch.setattr(clone, "fit", lambda *args: (rounds.append(args[4]), fit(*args)))
    n_asked = len(demonstrated)

    resumed = Head("scale-free", len(FEATURES))
    clone.clone(tmp_path, resumed, settings, MagicMock())

    assert rounds == [1]
    assert len(demonstrated) == n_asked
    assert torch.equal(weights(resumed), weights(whole))


def test_cloning_goes_on_from_a_start(tmp_path, demonstrated, monkeypatch):
    torch.manual_seed(7)
    start = FrozenPolicy(Head("scale-free", len(FEATURES)), {"name": "start"})
    seen, guides = [], []
    monkeypatch.setattr(clone, "fit", lambda actor, *_: seen.append(weights(actor).clone()))

    monkeypatch.setattr(clone, "collect", lambda *args: (guides.append(args[2]), collect(*args))[1])

    clone.clone(tmp_path, new_actor(), SETTINGS, MagicMock(), start=start)
    assert torch.equal(seen[0], weights(start.actor))
    assert all(guides)

    kept = new_actor()
    clone.clone(tmp_path, kept, replace(SETTINGS, rounds=0), MagicMock(), start=start)
    assert torch.equal(weights(kept), weights(start.actor))


def test_one_task_alone_is_refused(tmp_path, demonstrated):
    lengths = sorted(training_task(i, SETTINGS.family).spec.total_steps for i in range(21))
    assert lengths[0] < lengths[1]
    settings = replace(SETTINGS, longest_demonstration=lengths[0])

    with pytest.raises(InputError, match=r"at least 2 tasks of at most .* steps, got 1; raise"):
        clone.clone(tmp_path, new_actor(), settings, MagicMock())


def test_a_start_may_read_fewer_features():
    torch.manual_seed(7)
    few = [name for name in FEATURES if not name.startswith(("dog", "lc_"))]
    old, new = build_actor(few), new_actor()
    tokens = torch.randn(2, 5, len(FEATURES))

    new.start_from(old)

    torch.testing.assert_close(new(tokens), old(tokens))
    assert not torch.equal(weights(new)[:9], weights(new_actor())[:9])
