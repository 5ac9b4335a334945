"""Settings of all tests, and the tiny trainees that several of them train."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jobs import make_policy
from torch import Tensor

from lrenv.policies.frozen import FrozenPolicy
from lrenv.trainees.data import Dataset
from lrenv.trainees.mlp import MLPSpec
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.synthetic import teacher_dataset
from lrenv.trainees.tasks import DataSpec, Task
from lrenv.traits import OptimizerTraits

settings.register_profile("lrenv", deadline=None)
settings.load_profile("lrenv")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep the tests off the user's cache, and off the other cores."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRENV_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class ScriptedRun:
    """A quadratic bowl of several layers under SGD with momentum, with repeatable noise.

    The loss has the unit ``scale``, every layer stands ``copies`` times, and ``bad_loss`` replaces
    the losses of some steps.
    """

    def __init__(
        self,
        scale: float = 1.0,
        copies: int = 1,
        n_layers: int = 3,
        momentum: float = 0.9,
        bad_loss: dict[int, float] | None = None,
    ) -> None:
        self.scale, self.copies, self.momentum = scale, copies, momentum
        self.bad_loss = bad_loss or {}
        self.draw = torch.Generator().manual_seed(0)
        own = [self._normal(1, 4 + i, 5) for i in range(n_layers)]
        self.params = [p.clone() for p in own for _ in range(copies)]
        self.curvature = [0.05 * 2.0**i for i in range(n_layers)]
        self.buffers = [torch.zeros_like(p) for p in self.params]
        self.grads = self.buffers
        self.step = 0

    @property
    def traits(self) -> OptimizerTraits:
        return OptimizerTraits(torch.ones(1), torch.zeros(1), torch.tensor([self.momentum]))

    def parameters(self) -> list[Tensor]:
        return self.params

    def gradients(self) -> list[Tensor]:
        return self.grads

    def backward(self) -> Tensor:
        own, grads, loss = self.params[:: self.copies], [], 0.5
        for param, curvature in zip(own, self.curvature, strict=True):
            loss = loss + 0.5 * curvature * param.square().sum((1, 2))
            noisy = self.scale * (curvature * param + 0.02 * self._normal(*param.shape))
            grads += [noisy] * self.copies
        self.grads = grads
        loss = self.bad_loss.get(self.step, 1.0) * self.scale * loss
        self.step += 1
        return loss

    def update(self, lr: Tensor) -> None:
        for param, grad, buffer in zip(self.params, self.grads, self.buffers, strict=True):
            buffer.mul_(self.momentum).add_(grad)
            param.sub_(lr[:, None, None] * buffer)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.draw)


@pytest.fixture(scope="session")
def scripted_run() -> Callable[..., ScriptedRun]:
    return ScriptedRun


@pytest.fixture
def policy(tmp_path: Path) -> FrozenPolicy:
    """A policy with random weights that acts."""
    return make_policy(tmp_path)


@pytest.fixture(scope="session")
def tiny_data() -> Dataset:
    """128 training examples of 6 inputs and 3 classes."""
    return teacher_dataset(6, 3, 213, seed=0)


@pytest.fixture(scope="session")
def tiny_task() -> Task:
    """A task that trains in a fraction of a second."""
    spec = MLPSpec((8,), optimizer=OptimizerSpec("sgd", 0.9), batch_size=8, total_steps=40)
    return Task(DataSpec("teacher", projection=6, n_classes=3, n_train=200), spec, seed=3)
