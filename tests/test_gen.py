"""GeN and Hi-DLR on quadratics with known curvature; probes leave nothing behind."""

import copy
import math

import pytest
import torch
from torch import nn

from lrenv import processes
from lrenv.adaptive import GeNLR, HiDLR
from lrenv.adaptive.gen import fit_quadratic
from lrenv.adaptive.groups import freeze_to_budget, group_parameters
from lrenv.errors import InputError


class Bowl(nn.Module):
    """½ Σ h·θ², whose best LR for SGD on θ alone is 1/h."""

    def __init__(self, curvatures: list[float]) -> None:
        super().__init__()
        self.h = curvatures
        self.params = nn.ParameterList(torch.ones(3, dtype=torch.float64) for _ in curvatures)

    def forward(self) -> torch.Tensor:
        return sum(0.5 * h * p.square().sum() for h, p in zip(self.h, self.params, strict=True))


def train(bowl: Bowl, optimizer: torch.optim.Optimizer, steps: int, scale: float = 1.0) -> None:
    """Steps from the same point, so that the best LRs stay the same."""
    for _ in range(steps):
        with torch.no_grad():
            for param in bowl.params:
                param.fill_(scale)
        optimizer.zero_grad()
        bowl().backward()
        optimizer.step()


def test_gen_finds_the_newton_lr() -> None:
    bowl = Bowl([4.0])
    optimizer = torch.optim.SGD(bowl.parameters(), lr=0.01)
    scheduler = GeNLR(optimizer, bowl, bowl, interval=1)
    train(bowl, optimizer, 1)
    # doubled at most, of which a tenth counts
    assert scheduler.get_last_lr()[0] == pytest.approx(0.9 * 0.01 + 0.1 * 0.02)
    train(bowl, optimizer, 200)
    assert scheduler.get_last_lr()[0] == pytest.approx(0.25, rel=1e-4)
    assert scheduler.r2 == pytest.approx(1.0)


def test_gen_follows_its_equation() -> None:
    bowl = Bowl([4.0, 1.0])
    groups = [{"params": [p]} for p in bowl.params]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    optimizer.param_groups[1]["lr"] = 0.1
    scheduler = GeNLR(optimizer, bowl, bowl)
    train(bowl, optimizer, 1)
    # u = (0.8, 0.1): slope 4·0.8 + 0.1, curvature 4·0.64 + 0.01, times 3 coordinates each
    factor = 3.3 / 2.57
    expected = [lr * (0.9 + 0.1 * factor) for lr in (0.2, 0.1)]
    assert scheduler.get_last_lr() == pytest.approx(expected)
    assert [group["lr"] for group in optimizer.param_groups] == scheduler.get_last_lr()


@pytest.mark.parametrize("axis", [True, False])
def test_hi_dlr_finds_the_lr_of_every_group(axis: bool) -> None:
    curvatures = [8.0, 1.0, 0.5]
    bowl = Bowl(curvatures)
    optimizer = torch.optim.SGD([{"params": [p]} for p in bowl.params], lr=0.05)
    scheduler = HiDLR(optimizer, bowl, bowl, interval=2, axis=axis)
    train(bowl, optimizer, 500)
    assert scheduler.get_last_lr() == pytest.approx([1 / h for h in curvatures], rel=1e-4)
    # b²/(a·n) of ½hθ² at θ = 1: h² · h² / (h · h² · 1) for each coordinate
    assert scheduler.influence == pytest.approx(curvatures, rel=1e-4)


@pytest.mark.parametrize("interval", [1, 5])
def test_probes_come_at_the_interval(interval: int) -> None:
    bowl = Bowl([1.0, 2.0])
    optimizer = torch.optim.SGD([{"params": [p]} for p in bowl.params], lr=0.1)
    calls = []
    scheduler = HiDLR(optimizer, bowl, lambda: calls.append(1) or bowl(), interval)
    train(bowl, optimizer, 10)
    assert scheduler.r2 == pytest.approx(1.0)
    assert len(calls) == (1 + 4 * 2) * math.ceil(10 / interval)


def test_losses_that_no_quadratic_explains_change_nothing() -> None:
    bowl = Bowl([1.0, 2.0])
    optimizer = torch.optim.SGD([{"params": [p]} for p in bowl.params], lr=0.1)
    draw = torch.Generator().manual_seed(0)
    scheduler = HiDLR(optimizer, bowl, lambda: torch.randn((), generator=draw), interval=1)
    train(bowl, optimizer, 20)
    assert scheduler.get_last_lr() == [0.1, 0.1]
    assert scheduler.r2 < 0.9
    scheduler = HiDLR(optimizer, bowl, lambda: torch.tensor(math.inf), interval=1)
    train(bowl, optimizer, 1)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_loss_that_rises_along_the_update_changes_nothing() -> None:
    bowl = Bowl([1.0])
    optimizer = torch.optim.SGD(bowl.parameters(), lr=0.1, maximize=True)
    scheduler = GeNLR(optimizer, bowl, bowl, interval=1)
    train(bowl, optimizer, 3)
    assert scheduler.get_last_lr() == [0.1]


def test_probes_leave_nothing_behind() -> None:
    def run(probed: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.randn(16, 4)
        scheduler = None
        if probed:
            # no LR comes of these probes
            scheduler = HiDLR(
                optimizer, model, lambda: model(x).square().mean() * math.nan, interval=1
            )
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        assert scheduler is None or scheduler.r2 == 0.0
        assert all(module.training for module in model.modules())
        return [*model.state_dict().values()], torch.rand(3)

    (plain, random), (probed, other) = run(False), run(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, probed, strict=True))
    assert torch.equal(random, other)


def test_weights_are_behind_the_step_where_a_probe_is_interrupted() -> None:
    bowl, calls = Bowl([4.0, 1.0]), []
    optimizer = torch.optim.SGD([{"params": [p]} for p in bowl.params], lr=0.1)

    def loss() -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return bowl()

    scheduler = HiDLR(optimizer, bowl, loss)
    with pytest.raises(KeyboardInterrupt):
        train(bowl, optimizer, 1)

    assert [p.tolist() for p in bowl.params] == [[pytest.approx(0.6)] * 3, [pytest.approx(0.9)] * 3]
    train(bowl, optimizer, 20)
    assert scheduler.r2 > 0.99


class Averaged(Bowl):
    """Puts another buffer in the place of its own at every pass."""

    def __init__(self) -> None:
        super().__init__([4.0])
        self.register_buffer("mean", torch.zeros(()))

    def forward(self) -> torch.Tensor:
        loss = super().forward()
        self.mean = 0.9 * self.mean + 0.1 * loss.detach()
        return loss


def test_buffers_that_are_replaced_come_back() -> None:
    bowl = Averaged()
    optimizer = torch.optim.SGD(bowl.parameters(), lr=0.1)
    scheduler = GeNLR(optimizer, bowl, bowl)
    train(bowl, optimizer, 1)

    assert scheduler.r2 == pytest.approx(1.0)
    assert bowl.mean == pytest.approx(0.1 * 6.0)


def test_copies_act_and_groups_may_be_added() -> None:
    bowl = Bowl([4.0, 1.0])
    first = HiDLR(torch.optim.SGD([bowl.params[0]], lr=0.1), bowl, bowl, interval=1)
    bowl, scheduler = copy.deepcopy((bowl, first))
    scheduler.optimizer.add_param_group({"params": [bowl.params[1]]})
    train(bowl, scheduler.optimizer, 3)

    assert first.get_last_lr() == [0.1]
    assert scheduler.get_last_lr()[1] > 0.1
    assert all(scheduler.influence)


def test_dropout_is_off_in_probes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    optimizer, x, seen = torch.optim.SGD(model.parameters(), lr=0.0), torch.randn(16, 4), []
    scheduler = HiDLR(optimizer, model, lambda: seen.append(model(x).square().mean()) or seen[-1])
    model(x).square().mean().backward()
    optimizer.step()
    assert len(set(map(float, seen))) == 1
    assert len(seen) == 9
    assert scheduler.r2 == 0.0


def test_the_fit_by_hand() -> None:
    xi = torch.tensor([[-1.0], [-0.5], [0.5], [1.0]])
    fit = fit_quadratic(xi, 0.5 * 6.0 * xi[:, 0] ** 2 - 2.0 * xi[:, 0])
    assert (fit.curvature.item(), fit.slope.item()) == pytest.approx((6.0, 2.0))
    assert fit.r2 == pytest.approx(1.0)


def test_parameters_by_kind_and_layer() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.norm = nn.Linear(2, 3), nn.LayerNorm(3)
            self.lora_A, self.head = nn.Linear(3, 2, bias=False), nn.Linear(2, 4)

    model = Model()
    kinds = {name: len(params) for name, params in group_parameters(model).items()}
    assert kinds == {"rest": 1, "bias": 2, "norm": 2, "lora_A": 1, "head": 1}
    assert list(group_parameters(model, "layer")) == ["body", "norm", "lora_A", "head"]
    own = group_parameters(model, lambda name, p: str(p.ndim))
    assert {key: len(params) for key, params in own.items()} == {"1": 4, "2": 3}
    with pytest.raises(InputError, match="by kind, by layer or a function; got 'size'"):
        group_parameters(model, "size")


def test_the_least_influential_groups_are_frozen() -> None:
    bowl = Bowl([8.0, 1.0, 4.0])
    optimizer = torch.optim.SGD([{"params": [p]} for p in bowl.params], lr=0.05)
    scheduler = HiDLR(optimizer, bowl, bowl, interval=1)
    with pytest.raises(InputError, match="an estimate of influences, got none yet"):
        freeze_to_budget(scheduler, 7)
    train(bowl, optimizer, 3)
    assert freeze_to_budget(scheduler, 7) == [0, 2]
    assert [p.requires_grad for p in bowl.params] == [True, False, True]
    train(bowl, optimizer, 1)
    assert bowl.params[1].tolist() == [1.0] * 3
    assert bowl.params[0].tolist() != [1.0] * 3
    with pytest.raises(InputError, match="at least 3 parameters, the smallest group, got 2"):
        freeze_to_budget(scheduler, 2)


@pytest.mark.parametrize("kind", [HiDLR, GeNLR])
def test_resume_is_exact(tmp_path, kind) -> None:
    def start():
        bowl = Bowl([8.0, 1.0])
        optimizer = torch.optim.Adam([{"params": [p]} for p in bowl.params], lr=0.05)
        return bowl, optimizer, kind(optimizer, bowl, bowl, interval=3)

    whole, stopped, resumed = start(), start(), start()
    train(*whole[:2], 11)
    train(*stopped[:2], 5)
    torch.save([part.state_dict() for part in stopped], tmp_path / "state.pt")
    for part, state in zip(resumed, torch.load(tmp_path / "state.pt"), strict=True):
        part.load_state_dict(state)
    train(*resumed[:2], 6)
    assert whole[2].get_lr() == resumed[2].get_lr()
    assert whole[2].get_lr()[0] != 0.05
    assert all(map(torch.equal, whole[0].params, resumed[0].params))


def test_gen_has_no_groups_to_freeze() -> None:
    bowl = Bowl([1.0])
    scheduler = GeNLR(torch.optim.SGD(bowl.parameters(), lr=0.1), bowl, bowl)
    with pytest.raises(InputError, match="got a GeNLR"):
        freeze_to_budget(scheduler, 10)


def test_all_processes_take_the_mean_of_their_losses(monkeypatch) -> None:
    def mean(losses: torch.Tensor) -> torch.Tensor:
        xi = torch.tensor([0.0, -1.0, 1.0], dtype=torch.float64)
        return 2.0 * xi.square() - 6.0 * xi  # whatever this process's are; best at 1.5

    monkeypatch.setattr(processes, "mean", mean)
    param = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([param], lr=0.1)
    scheduler = GeNLR(optimizer, nn.ParameterList([param]), lambda: param.square().sum())
    param.square().sum().backward()
    optimizer.step()
    assert scheduler.get_last_lr() == pytest.approx([0.1 * (0.9 + 0.1 * 1.5)])


def test_an_interval_of_none_is_refused() -> None:
    bowl = Bowl([1.0])
    with pytest.raises(InputError, match="interval of at least 1, got 0"):
        HiDLR(torch.optim.SGD(bowl.parameters(), lr=0.1), bowl, bowl, interval=0)
