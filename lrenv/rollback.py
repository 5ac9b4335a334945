"""Coming back to what was: a run's last good weights, and all that a trial of ours has changed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrenv.errors import InputError
from lrenv.hooks import parameters_of, set_lr


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
        model: The model; parameters that are not trained are not copied, see :meth:`admit`.
        optimizer: Its optimizer.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._values: dict[Tensor, Tensor] = {}
        self.admit(model.parameters())
        self.admit(parameters_of(optimizer))
        self._buffers = Buffers(model)
        self._state = {param: _copy(state) for param, state in optimizer.state.items()}
        self._groups = [_settings(group) for group in optimizer.param_groups]
        self._lrs = [(group["lr"], float(group["lr"])) for group in optimizer.param_groups]

    def admit(self, params: Iterable[Tensor]) -> None:
        """Copy those that train by now and have no copy, as ones that were frozen until now."""
        for param in params:
            if param.requires_grad and param not in self._values:
                self._values[param] = param.detach().clone()

    @torch.no_grad()
    def restore(self, optimizer: Optimizer) -> None:
        """Bring all of it back, in place; groups added since keep what they have."""
        for weights, value in self._values.items():
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
        if any(id(p) not in known for p in parameters_of(optimizer)):
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

    def admit(self) -> None:
        """Keep parameters too that train from this optimizer step on; call it ahead of each."""
        for kept in (self._candidate, self._good):
            if kept:
                kept.admit(parameters_of(self._optimizer))

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
    """Torch's random states: of the CPU, of a model's GPUs, and of loaders' own generators.

    Args:
        model: The model.
        loaders: Batches, whose attribute ``generator`` is such a one where they have any.
    """

    def __init__(self, model: nn.Module, *loaders: Any) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        gpus = {t.device for t in tensors if t.device.type == "cuda"}
        self._gpus = {gpu: torch.cuda.get_rng_state(gpu) for gpu in gpus}
        self._cpu = torch.get_rng_state()
        generators = [getattr(loader, "generator", None) for loader in loaders]
        self._own = [(g, g.get_state()) for g in generators if isinstance(g, torch.Generator)]

    def restore(self) -> None:
        """Bring all of them back."""
        torch.set_rng_state(self._cpu)
        for gpu, state in self._gpus.items():
            torch.cuda.set_rng_state(state, gpu)
        for generator, state in self._own:
            generator.set_state(state)


@contextmanager
def same_modes_and_random_numbers(model: nn.Module, *loaders: Any) -> Iterator[None]:
    """Bring back whether each module trains, and :class:`RandomNumbers`."""
    modes = {module: module.training for module in model.modules()}
    random = RandomNumbers(model, *loaders)
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
