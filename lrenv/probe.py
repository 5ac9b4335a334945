"""Probes: the loss of a batch at several points along the last update.

Shape legend: r runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

FACTORS = (1.0, 4.0, 16.0, 64.0)
"""Multiples of the last update at which the loss is taken, beside none of it."""

Probe = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor | None]
"""From parameters θ and their last update Δ, ``(r, ...)`` each, to the losses of a batch at
θ + k·Δ for k of 0 and ``FACTORS``, ``(r, 1 + len(FACTORS))``, or None if there are none this time;
leaves the parameters as they are."""


class LossProbe:
    """Probes a model by a function that computes a loss, five forward passes a decision.

    Args:
        model: The model. Its dropout is off in probes, and its buffers, such as the averages of
            batch norm, and torch's random state are brought back.
        loss: Computes the loss of a batch, a scalar, without a backward pass; of the batch that
            comes next or of one kept aside, as the last batch shows its own gradient's success. It
            is called within ``optimizer.step()``, five times on the same batch.
    """

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor]) -> None:
        self._model, self._loss = model, loss

    @torch.no_grad()
    def __call__(self, params: Sequence[Tensor], updates: Sequence[Tensor]) -> Tensor:
        """Return the losses along the updates, ``(1, 5)``; see :data:`Probe`."""
        kept = [p.clone() for p in params]
        losses = []
        try:
            with undisturbed(self._model):
                for factor in (0.0, *FACTORS):
                    for param, start, update in zip(params, kept, updates, strict=True):
                        torch.add(start, update, alpha=factor, out=param)
                    losses.append(self._loss().detach().float().reshape(()))
        finally:
            for param, start in zip(params, kept, strict=True):
                param.copy_(start)
        return torch.stack(losses)[None]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Dropout off, batch norm on the batch; buffers and random states come back bit for bit."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.eval()
    for module, training in modes.items():
        if training and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for buffer, value in buffers:
            buffer.copy_(value)


def tolerant(probe: Probe) -> Probe:
    """A probe that a failing loss function makes give up, with a warning, instead of the job."""
    works = True

    def guarded(params: Sequence[Tensor], updates: Sequence[Tensor]) -> Tensor | None:
        nonlocal works
        try:
            return probe(params, updates) if works else None
        except Exception as error:
            works = False
            warnings.warn(
                f"Expected a loss from the probe, got {type(error).__name__}: {error}; the policy "
                "goes on without probes.",
                stacklevel=2,
            )
            return None

    return guarded
