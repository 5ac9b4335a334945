"""What sets the LR in ``lrenv finetune``: a policy, or one of :mod:`lrenv.adaptive`'s methods."""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

from torch import Tensor

from lrenv.errors import InputError
from lrenv.policies.frozen import DEFAULT_POLICY, FrozenPolicy, load_policy
from lrenv.scheduler import LearnedLR
from lrenv.trainees.single import SingleTrainee
from lrenv.training.peers import get_peer, usual_peak
from lrenv.training.settings import FinetuneSettings

POLICY_SETTINGS = ("policy", "layerwise", "rollback")
"""Settings of a run under a policy alone."""

OTHER_SETTINGS = ("lr",)
"""Settings of a run under another method alone."""


class Method(Protocol):
    """Sets the LRs of one run; :class:`lrenv.LearnedLR` is one.

    Attributes:
        decisions: The decision log of a policy; empty for other methods.
    """

    decisions: list[dict[str, Any]]

    def step(self, loss: Tensor, *, val_loss: Tensor | None = None) -> None:
        """Take the loss ``(1,)`` of an optimizer step, behind it."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""


class AdaptiveMethod:
    """One of :mod:`lrenv.adaptive`'s methods; it sees no validation loss.

    Args:
        name: Its key in ``PEERS``, which must say what a run that goes on must know.
        trainee: The run; its optimizer may be replaced.
        lr: The LR that the method starts from.
    """

    def __init__(self, name: str, trainee: SingleTrainee, lr: float) -> None:
        self.decisions: list[dict[str, Any]] = []
        self._run = get_peer(name).start(trainee, lr, 1.0)

    def step(self, loss: Tensor, *, val_loss: Tensor | None = None) -> None:
        """See :class:`Method`."""
        self._run.after_step(loss)

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Method`."""
        return {"parts": [part.state_dict() for part in self._run.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :class:`Method`."""
        for part, state in zip(self._run.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)


def policy_of(settings: FinetuneSettings) -> FrozenPolicy | None:
    """Load the policy of a run; None where another method sets the LR.

    Raises:
        InputError: Settings of a policy and of another method are mixed, or one cannot be used.
    """
    learned = settings.method == "learned"
    for name in OTHER_SETTINGS if learned else POLICY_SETTINGS:
        value = getattr(settings, name)
        if value != getattr(FinetuneSettings(), name):
            raise InputError(
                f"Expected --{name} with {'another method than' if learned else 'the method'} "
                f"learned, got {name}={value!r} with {settings.method}; leave it out."
            )
    if settings.lr is not None and not 0 < settings.lr < math.inf:
        raise InputError(f"Expected a finite lr above 0, got {settings.lr}; name another.")
    return load_policy(settings.policy) if learned else None


def start_lr(settings: FinetuneSettings, trainee: SingleTrainee) -> float:
    """The LR that a method which is no policy starts from."""
    return usual_peak(trainee.spec.optimizer) if settings.lr is None else settings.lr


def start_method(
    settings: FinetuneSettings, policy: FrozenPolicy | None, trainee: SingleTrainee
) -> Method:
    """Set a run up under its method.

    Args:
        settings: The run's.
        policy: What :func:`policy_of` returned.
        trainee: The run.
    """
    if policy is None:
        return AdaptiveMethod(settings.method, trainee, start_lr(settings, trainee))
    return learned_lr(trainee, policy, settings.rollback, settings.layerwise)


def learned_lr(
    trainee: SingleTrainee,
    policy: FrozenPolicy | str = DEFAULT_POLICY,
    rollback: bool = False,
    layerwise: Literal["lc"] | None = None,
) -> LearnedLR:
    """Put a trainee under a policy, which is told all that the trainee knows of its run.

    Args:
        trainee: The run.
        policy: A policy, or the name of one.
        rollback: Come back to the last good weights where the loss explodes.
        layerwise: See :class:`lrenv.LearnedLR`.
    """
    return LearnedLR(
        trainee.optimizer,
        trainee.total_steps,
        policy,
        steps_per_epoch=trainee.steps_per_epoch,
        rollback=trainee.model if rollback else None,
        layerwise=layerwise,
    )
