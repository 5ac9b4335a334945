"""Pairs of layers: who trains, who keeps gradients, where the rotation goes."""

import pytest
import torch
from torch import nn

from lrenv.adaptive import PairwiseLayers
from lrenv.errors import InputError


def model(n_layers: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 5), nn.ModuleList(nn.Linear(5, 5) for _ in range(n_layers)), nn.Linear(5, 2)
    )


def forward(net: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    x = net[0](x)
    for layer in net[1]:
        x = torch.tanh(layer(x))
    return net[2](x)


def test_a_pair_and_what_is_outside_trains() -> None:
    net = model()
    pairs = PairwiseLayers(net[1])
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 12
    seen = []
    for _ in range(7):
        before = [p.detach().clone() for p in net.parameters()]
        optimizer.zero_grad()
        forward(net, torch.ones(2, 3)).sum().backward()
        optimizer.step()
        moved = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
        kept = [p.grad is not None for p in net.parameters()]
        assert moved == kept
        assert moved[:2] == moved[-2:] == [True, True]
        seen.append([k for k in range(4) if moved[2 + 2 * k]])
        pairs.step()
        assert all(p.grad is None for p in net.parameters() if not p.requires_grad)
    assert seen == [[0, 1], [1, 2], [2, 3], [0, 1], [1, 2], [2, 3], [0, 1]]


def test_what_was_frozen_stays_frozen_and_all_can_be_released() -> None:
    net = model()
    net[1][0].weight.requires_grad_(False)
    pairs = PairwiseLayers(net[1])
    assert not net[1][0].weight.requires_grad
    pairs.step()
    pairs.release()
    frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert frozen == ["1.0.weight"]


def test_resume_goes_on_with_the_pair() -> None:
    pairs = PairwiseLayers(model()[1])
    pairs.step()
    net = model()
    PairwiseLayers(net[1]).load_state_dict(pairs.state_dict())
    assert [layer.weight.requires_grad for layer in net[1]] == [False, True, True, False]


def test_one_layer_is_no_pair() -> None:
    with pytest.raises(InputError, match="at least two layers that train, got 1"):
        PairwiseLayers(model(1)[1])


def test_layers_without_weights_are_left_out() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Dropout(), nn.Linear(2, 2), nn.Linear(2, 1))
    pairs = PairwiseLayers(net)
    for expected in ([True, True, False], [False, True, True], [True, True, False]):
        assert [net[k].weight.requires_grad for k in (0, 3, 4)] == expected
        net(torch.ones(1, 2)).sum().backward()
        pairs.step()
