"""Peers: other people's ways to set the learning rate, at their defaults.

They come from their own packages, or from :mod:`lrenv.adaptive` where there is none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau

from lrenv.adaptive import ALRScheduler, GeNLR, HiDLR, LCSensitivityLR, PairwiseLayers
from lrenv.adaptive.groups import group_parameters
from lrenv.decisions import equal_steps
from lrenv.errors import InputError
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.stacked import trained

SCALES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Multiples of its default scale at which a peer is tuned."""

_MODULES = {"dog-optimizer": "dog", "transformers": "transformers.optimization"}
_VALIDATIONS = 50
_VALIDATION_EXAMPLES = 256
_NORM_BATCHES = 50  # as schedulefree's documentation has it


@dataclass(frozen=True)
class PeerRun:
    """A run under a peer, which has replaced or set the trainee's optimizer.

    Attributes:
        after_step: Called behind every optimizer step with its training loss ``(1,)``.
        finish: Brings the trained model about; None where it is there at any step.
        parts: What, beside the trainee, a run that goes on from a checkpoint must know, by
            ``state_dict()`` and ``load_state_dict()``; of :mod:`lrenv.adaptive` alone.
    """

    after_step: Callable[[Tensor], None] = lambda loss: None
    finish: Callable[[], None] | None = None
    parts: tuple[Any, ...] = ()


Start = Callable[[SingleTrainee, float, float], PeerRun]


@dataclass(frozen=True)
class Peer:
    """A peer.

    Attributes:
        label: How it is called in results.
        start: Sets up a run, from its trainee, the peak LR that people start from, and a multiple
            of the peer's default scale: of that peak, or of its own.
        package: The distribution that it comes from.
    """

    label: str
    start: Start
    package: str = "torch"

    def load(self) -> str:
        """Import the package and return its version.

        Raises:
            InputError: It is not installed.
        """
        module = _MODULES.get(self.package, self.package)
        try:
            import_module(module)
            return version(self.package)
        except ImportError as error:
            raise InputError(
                f"Expected {self.package} for the peer {self.label}, got: {error}; install it: "
                'pip install -e ".[peers]" in the checkout of lrenv.'
            ) from None


def _plateau(trainee: SingleTrainee, peak: float, scale: float) -> PeerRun:
    """torch's, on the validation loss at every fiftieth of the run."""
    _set_lr(trainee, peak * scale)
    scheduler = ReduceLROnPlateau(trainee.optimizer)
    watched, step = equal_steps(trainee.total_steps, _VALIDATIONS), 0

    def after_step(_: Tensor) -> None:
        nonlocal step
        step += 1
        if step in watched:
            scheduler.step(float(trainee.evaluate("val", _VALIDATION_EXAMPLES)[0]))

    return PeerRun(after_step)


def _one_cycle(trainee: SingleTrainee, peak: float, scale: float) -> PeerRun:
    scheduler = OneCycleLR(
        trainee.optimizer,
        peak * scale,
        trainee.total_steps,
        cycle_momentum=trainee.spec.optimizer.momentum > 0.0,
    )
    # One step less than the run has: torch's counts its start.
    left = trainee.total_steps - 1

    def after_step(_: Tensor) -> None:
        nonlocal left
        if left:
            left -= 1
            scheduler.step()

    return PeerRun(after_step)


def _greedy(trainee: SingleTrainee, peak: float, scale: float) -> PeerRun:
    """transformers', on smoothed training losses, within a hundredth and ten times the peak."""
    _set_lr(trainee, peak * scale)
    scheduler = import_module("transformers.optimization").GreedyLR(
        trainee.optimizer, smooth=True, min_lr=peak * scale / 100, max_lr=peak * scale * 10
    )
    return PeerRun(lambda loss: scheduler.step(float(loss)))


def _lc(trainee: SingleTrainee, peak: float, scale: float) -> PeerRun:
    _set_lr(trainee, peak * scale)
    scheduler = LCSensitivityLR(trainee.optimizer)
    return PeerRun(lambda _: scheduler.step(), parts=(scheduler,))


def _gen(trainee: SingleTrainee, peak: float, scale: float) -> PeerRun:
    _set_lr(trainee, peak * scale)
    scheduler = GeNLR(trainee.optimizer, trainee.model, trainee.batch_loss)
    return PeerRun(lambda _: scheduler.step(), parts=(scheduler,))


def _hi_dlr(trainee: SingleTrainee, peak: float, scale: float) -> PeerRun:
    """Hi-DLR with a group for each kind of parameter."""
    groups = [
        {"params": params, "name": name} for name, params in group_parameters(trainee.model).items()
    ]
    trainee.optimizer = trainee.spec.optimizer.build(groups, peak * scale)
    scheduler = HiDLR(trainee.optimizer, trainee.model, trainee.batch_loss)
    return PeerRun(lambda _: scheduler.step(), parts=(scheduler,))


def _alr(trainee: SingleTrainee, peak: float, scale: float) -> PeerRun:
    """ALR on the outputs of all layers with weights of their own."""
    _set_lr(trainee, peak * scale)
    scheduler = ALRScheduler(trainee.optimizer, _weighted(trainee.model))
    return PeerRun(lambda _: scheduler.step(), parts=(scheduler,))


def _alr_pairwise(trainee: SingleTrainee, peak: float, scale: float) -> PeerRun:
    """ALR that trains two layers at a time: a stack's, or else all with trained weights."""
    run = _alr(trainee, peak, scale)
    stacks = (m for m in trainee.model.modules() if isinstance(m, nn.ModuleList))  # outer first
    try:
        pairs = PairwiseLayers([*next(stacks, _weighted(trainee.model))])
    except InputError:  # there is no pair
        return run

    def after_step(loss: Tensor) -> None:
        run.after_step(loss)
        pairs.step()

    return PeerRun(after_step, parts=(*run.parts, pairs))


def _weighted(model: nn.Module) -> list[nn.Module]:
    """The modules of a model with weights of their own."""
    return [m for m in model.modules() if list(m.parameters(recurse=False))]


def _schedule_free(trainee: SingleTrainee, peak: float, scale: float) -> PeerRun:
    """Schedule-Free AdamW; batch norm's averages are taken anew for the averaged weights."""
    kind = import_module("schedulefree").AdamWScheduleFree
    optimizer = kind(trained(trainee.model), lr=0.0025 * scale, weight_decay=_decay(trainee))
    optimizer.train()
    trainee.optimizer = optimizer

    @torch.no_grad()
    def finish() -> None:
        optimizer.eval()
        if _has_batch_norm(trainee.model):
            size = trainee.spec.batch_size
            for x in trainee.dataset.x_train.split(size)[:_NORM_BATCHES]:
                trainee.model(x)

    return PeerRun(finish=finish)


def _prodigy(trainee: SingleTrainee, peak: float, scale: float) -> PeerRun:
    kind = import_module("prodigyopt").Prodigy
    with redirect_stdout(None):
        trainee.optimizer = kind(
            trained(trainee.model),
            d_coef=scale,
            weight_decay=_decay(trainee),
            decouple=_decoupled(trainee),
        )
    return PeerRun()


def _d_adaptation(trainee: SingleTrainee, peak: float, scale: float) -> PeerRun:
    """D-Adaptation of Adam, or of SGD where the trainee's optimizer is SGD."""
    package, settings = import_module("dadaptation"), trainee.spec.optimizer
    params, decay = trained(trainee.model), _decay(trainee)
    if settings.name == "sgd":
        trainee.optimizer = package.DAdaptSGD(
            params, lr=scale, momentum=settings.momentum, weight_decay=decay
        )
    else:
        with redirect_stdout(None):
            trainee.optimizer = package.DAdaptAdam(
                params, lr=scale, weight_decay=decay, decouple=_decoupled(trainee)
            )
    return PeerRun()


def _dog(trainee: SingleTrainee, peak: float, scale: float) -> PeerRun:
    """DoG with polynomial-decay averaging of the weights and its authors' first step."""
    package = import_module("dog")
    logging.getLogger("dog").setLevel(logging.ERROR)  # it warns of any scale but 1
    optimizer = package.DoG(
        trained(trainee.model),
        reps_rel=1e-4 if _has_batch_norm(trainee.model) else 1e-6,
        lr=scale,
        # It adds decay to the gradient, which decoupled decay is not.
        weight_decay=0.0 if _decoupled(trainee) else _decay(trainee),
    )
    trainee.optimizer = optimizer
    averager = package.PolynomialDecayAverager(trainee.model)

    def finish() -> None:
        trainee.model.load_state_dict(averager.averaged_model.state_dict())

    return PeerRun(lambda _: averager.step(), finish)


def _annealed(start: Start) -> Start:
    """The same with a cosine over the run."""

    def annealed(trainee: SingleTrainee, peak: float, scale: float) -> PeerRun:
        start(trainee, peak, scale)
        scheduler = CosineAnnealingLR(trainee.optimizer, trainee.total_steps)
        return PeerRun(lambda _: scheduler.step())

    return annealed


PEERS: dict[str, Peer] = {
    "plateau": Peer("ReduceLROnPlateau", _plateau),
    "one-cycle": Peer("OneCycle", _one_cycle),
    "greedy": Peer("GreedyLR", _greedy, "transformers"),
    "lc": Peer("LC", _lc),
    "gen": Peer("GeN", _gen),
    "hi-dlr": Peer("Hi-DLR", _hi_dlr),
    "alr": Peer("ALR", _alr),
    "alr-pairwise": Peer("ALR-Pairwise", _alr_pairwise),
    "schedule-free": Peer("Schedule-Free AdamW", _schedule_free, "schedulefree"),
    "prodigy": Peer("Prodigy", _prodigy, "prodigyopt"),
    "prodigy-cosine": Peer("Prodigy, cosine", _annealed(_prodigy), "prodigyopt"),
    "d-adaptation": Peer("D-Adaptation", _d_adaptation, "dadaptation"),
    "d-adaptation-cosine": Peer("D-Adaptation, cosine", _annealed(_d_adaptation), "dadaptation"),
    "dog": Peer("DoG", _dog, "dog-optimizer"),
}
"""Peers by name; a new one is one function and one line here."""


def get_peer(name: str) -> Peer:
    """Return a peer by name, or raise :class:`InputError` with the names there are."""
    if name not in PEERS:
        raise InputError(f"Expected peers among all, {', '.join(PEERS)}; got {name!r}.")
    return PEERS[name]


def usual_peak(optimizer: OptimizerSpec) -> float:
    """The peak LR people start from: 1e-3 for Adam, 1e-2 for SGD with momentum, 1e-1 without."""
    if optimizer.name != "sgd":
        return 1e-3
    return 1e-2 if optimizer.momentum else 1e-1


def effective_lr(optimizer: torch.optim.Optimizer) -> float:
    """The LR of the first parameter group, with the factor that a peer estimates."""
    group = optimizer.param_groups[0]
    if "eta" in group:  # DoG
        return float(group["eta"][0])
    return float(group["lr"]) * float(group.get("d", 1.0))


def _set_lr(trainee: SingleTrainee, lr: float) -> None:
    for group in trainee.optimizer.param_groups:
        group["lr"] = lr


def _decay(trainee: SingleTrainee) -> float:
    return trainee.spec.optimizer.weight_decay


def _decoupled(trainee: SingleTrainee) -> bool:
    return trainee.spec.optimizer.name == "adamw"


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
