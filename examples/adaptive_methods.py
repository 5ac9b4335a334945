"""Methods of papers, each from the same start: ``python examples/adaptive_methods.py``."""

import torch
from torch import nn

from lrenv.adaptive import (
    ALRScheduler,
    GeNLR,
    HiDLR,
    LCSensitivityLR,
    PairwiseLayers,
    group_parameters,
)

STEPS, BATCH, LR = 300, 64, 1e-3
torch.manual_seed(0)
inputs = torch.randn(2000, 20)
labels = (inputs[:, :10].square().sum(1) > inputs[:, 10:].square().sum(1)).long()


def train(method: str) -> float:
    """Train under a method; returns the mean loss of the last 20 steps."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2)
    )
    groups = [{"params": params} for params in group_parameters(model, by="kind").values()]
    optimizer = torch.optim.AdamW(groups, lr=LR)
    index = torch.randint(len(inputs), (STEPS, BATCH))
    step = 0

    def loss_now() -> torch.Tensor:
        return nn.functional.cross_entropy(model(inputs[index[step]]), labels[index[step]])

    scheduler = {
        "LC": lambda: LCSensitivityLR(optimizer),
        "GeN": lambda: GeNLR(optimizer, model, loss_now),
        "Hi-DLR": lambda: HiDLR(optimizer, model, loss_now),
        "ALR": lambda: ALRScheduler(optimizer, modules=[model[1], model[3]]),
        "pairwise layers": lambda: PairwiseLayers([model[0], model[2], model[4]]),
    }[method]()
    losses = []
    for step in range(STEPS):  # noqa: B007, read by loss_now
        loss = loss_now()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / 20


for method in ("LC", "GeN", "Hi-DLR", "ALR", "pairwise layers"):
    print(f"{method:>15}  loss {train(method):.4f}")
