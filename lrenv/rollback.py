"""Coming back to what was: a run's last good weights, and all that a trial of ours has changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrenv.errors import InputError
from lrenv.hooks import set_lr


class Buffers:
    """A copy of a model's buffers, which modules change in place or put others in the place of."""

    def __init__(self, model: nn.Module) -> None:
        self._values = [
            (module, name, buffer, buffer.clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Bring them back, the same tensors with the same values."""
        for module, name, buffer, value in self._values:
            module._buffers[name] = buffer.copy_(value)


class Snapshot:
    """A copy of what training changes: trained parameters, buffers, and all of the optimizer.

    Args:
        model: The model; parameters that are not trained are not copied.
        optimizer: Its optimizer.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        self._values = [(param, param.detach().clone()) for param in trained]
        self._buffers = Buffers(model)
        self._state = {param: _copy(state) for param, state in optimizer.state.items()}
        self._groups = [_settings(group) for group in optimizer.param_groups]
        self._lrs = [(group["lr"], float(group["lr"])) for group in optimizer.param_groups]

    @torch.no_grad()
    def restore(self, optimizer: Optimizer) -> None:
        """Bring all of it back, in place; groups added since keep what they have."""
        for weights, value in self._values:
            weights.copy_(value)
        self._buffers.restore()
        for param in list(optimizer.state):
            if param not in self._state:
                del optimizer.state[param]
        for param, state in self._state.items():
            optimizer.state[param] = _copy(state)
        known = zip(optimizer.param_groups, self._groups, self._lrs, strict=False)
        for group, settings, (own, lr) in known:
            group.update(_copy(settings))
            group["lr"] = own  # the same tensor, where it is one
            set_lr(group, lr)


class Rollback:
    """The last good weights of a run.

    Losses judge the weights that they were computed at. So weights are a candidate when they are
    kept, and good when the losses of the interval that starts from them are.

    Args:
        model: The model; kept twice, with its buffers and the optimizer's state.
        optimizer: The optimizer.

    Raises:
        InputError: The optimizer trains parameters that the model does not have.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        known = {id(p) for p in model.parameters()} if isinstance(model, nn.Module) else set()
        if any(id(p) not in known for group in optimizer.param_groups for p in group["params"]):
            raise InputError(
                "Expected the model whose parameters the optimizer has as rollback, got a "
                f"{type(model).__name__} that lacks some; pass rollback=model."
            )
        self._model, self._optimizer = model, optimizer
        self.reset()

    def reset(self) -> None:
        """Forget all weights."""
        self._candidate: Snapshot | None = None
        self._good: Snapshot | None = None

    def update(self, unfit: bool, calm: bool) -> bool:
        """Keep weights or come back to them behind an interval; returns whether it came back.

        Args:
            unfit: Whether its losses were not finite, or exploded.
            calm: Whether no loss of late was like that.
        """
        if unfit:
            self._candidate = None
            if self._good:
                self._good.restore(self._optimizer)
            return self._good is not None
        if calm:
            self._good = self._candidate or self._good
            self._candidate = Snapshot(self._model, self._optimizer)
        return False


class RandomNumbers:
    """Torch's random states: of the CPU, of a model's GPUs, and of a loader's own generator.

    Args:
        model: The model.
        loader: Batches, whose attribute ``generator`` is such a one where it has any.
    """

    def __init__(self, model: nn.Module, loader: Any = None) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        gpus = {t.device for t in tensors if t.device.type == "cuda"}
        self._gpus = {gpu: torch.cuda.get_rng_state(gpu) for gpu in gpus}
        self._cpu = torch.get_rng_state()
        own = getattr(loader, "generator", None)
        self._own = (own, own.get_state()) if isinstance(own, torch.Generator) else None

    def restore(self) -> None:
        """Bring all of them back."""
        torch.set_rng_state(self._cpu)
        for gpu, state in self._gpus.items():
            torch.cuda.set_rng_state(state, gpu)
        if self._own:
            self._own[0].set_state(self._own[1])


@contextmanager
def same_modes_and_random_numbers(model: nn.Module, loader: Any = None) -> Iterator[None]:
    """Bring back whether each module trains, and :class:`RandomNumbers`."""
    modes = {module: module.training for module in model.modules()}
    random = RandomNumbers(model, loader)
    try:
        yield
    finally:
        random.restore()
        for module, training in modes.items():
            module.training = training


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return _copy({name: value for name, value in group.items() if name not in ("params", "lr")})


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in state.items()
    }
