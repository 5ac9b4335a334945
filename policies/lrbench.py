"""LRBench's learning-rate policies, as pure functions of the step, and its notation for them.

Sources: LRBench++ ("Rethinking Learning Rate Tuning in the Era of Language Models", arXiv
2309.08859), LRBench (TIST 2023). A policy is written ``k0_0.001+k1_0.006+lrPolicy_TRI+l_2000``, a
composition as policies joined by ``-``, then ``-AT-`` and the steps at which the next one takes
over, each starting anew from its step 0. Step t counts from 0; l is in optimizer steps.

Where the paper and LRBench's own code differ, this is the paper: COS2 halves at its crests, and
RSW starts a tooth, rather than ends one, at multiples of l. The code's further waves (DTRI, DSIN,
UPCOS, SINRSW, COSRSW) are not here. Its change-on-plateau goes back to the policy before as long as
less than four fifths of the run are over; :class:`ChangeOnPlateau` goes through its list in order.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lrenv.errors import InputError
from lrenv.traits import check_unit

Values = Mapping[str, Any]
Shape = Callable[[float, Values], float]


def _halve(periods: float) -> float:
    return 0.5 ** math.floor(periods)


def _triangle(t: float, v: Values) -> float:
    return 2 / math.pi * abs(math.asin(math.sin(math.pi * t / (2 * v["l"]))))


def _sine(t: float, v: Values) -> float:
    return abs(math.sin(math.pi * t / (2 * v["l"])))


def _cosine(t: float, v: Values) -> float:
    return 0.5 * (1 + math.cos(math.pi * t / v["l"]))


def _sawtooth(t: float, v: Values) -> float:
    """Fall from 1 to 0 within l; at each multiple of l the next tooth starts."""
    return 1 - float(t / v["l"]) % 1


_WAVES: dict[str, tuple[Shape, float]] = {
    "TRI": (_triangle, 2),
    "SIN": (_sine, 2),
    "COS": (_cosine, 2),
    "RSW": (_sawtooth, 1),
}
"""Waves by name, with their period in units of l."""


def _waves() -> dict[str, tuple[Shape, tuple[str, ...]]]:
    shapes: dict[str, tuple[Shape, tuple[str, ...]]] = {}
    for name, (wave, period) in _WAVES.items():

        def halved(t: float, v: Values, wave: Shape = wave, period: float = period) -> float:
            return wave(t, v) * _halve(t / (period * v["l"]))

        def decayed(t: float, v: Values, wave: Shape = wave) -> float:
            return wave(t, v) * _power(v["gamma"], t)

        shapes[name] = wave, ("k0", "k1", "l")
        shapes[f"{name}2"] = halved, ("k0", "k1", "l")
        shapes[f"{name}EXP"] = decayed, ("k0", "k1", "gamma", "l")
    return shapes


def _power(base: float, exponent: float) -> float:
    try:
        return float(base**exponent)
    except OverflowError:
        return math.inf


_DECAYS: dict[str, tuple[Shape, tuple[str, ...]]] = {
    "FIX": (lambda t, v: 1.0, ("k0",)),
    "STEP": (lambda t, v: _power(v["gamma"], t // v["l"]), ("k0", "gamma", "l")),
    "NSTEP": (
        lambda t, v: _power(v["gamma"], bisect_right(_steps(v["l"]), t)),
        ("k0", "gamma", "l"),
    ),
    "EXP": (lambda t, v: _power(v["gamma"], t), ("k0", "gamma")),
    "INV": (lambda t, v: _power(1 + v["gamma"] * t, -v["p"]), ("k0", "gamma", "p")),
    "SIG": (lambda t, v: _sigmoid(-v["gamma"] * (v["l"] - t)), ("k0", "gamma", "l")),
}
"""Multiples of k0, with their parameters."""

_BETWEEN: dict[str, tuple[Shape, tuple[str, ...]]] = {
    "POLY": (lambda t, v: _power(max(0.0, 1 - t / v["l"]), v["p"]), ("k0", "k1", "p", "l")),
    **_waves(),
}
"""Functions g of η(t) = |k0 − k1|·g(t) + min(k0, k1), with their parameters."""

KINDS: dict[str, tuple[str, ...]] = {
    name: parameters for name, (_, parameters) in (_DECAYS | _BETWEEN).items()
}
"""The parameters of each policy."""


@dataclass(frozen=True)
class LRPolicy:
    """One policy: call it with a step for the LR.

    Attributes:
        kind: A key of ``KINDS``.
        values: Its parameters: the LRs k0 and k1, the decay gamma, the power p, and the length l, a
            number of steps, for NSTEP several.

    Raises:
        InputError: There is no such policy, or its parameters are not those it needs.
    """

    kind: str
    values: Values = field(hash=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"Expected lrPolicy among {', '.join(KINDS)}; got {self.kind!r}.")
        needed, given = KINDS[self.kind], sorted(self.values)
        if given != sorted(needed):
            raise InputError(
                f"Expected {', '.join(needed)} for {self.kind}, got {', '.join(given) or 'none'}."
            )
        for name, value in self.values.items():
            self._check(name, _steps(value))

    def _check(self, name: str, values: tuple[Any, ...]) -> None:
        least = 1.0 if name == "l" else 0.0
        if name == "gamma" and self.kind == "SIG":  # negative where it falls
            least = -math.inf
        rising = all(a < b for a, b in pairwise(values))
        many = len(values) > 1 and (self.kind, name) != ("NSTEP", "l")
        if many or not rising or not all(math.isfinite(x) and x >= least for x in values):
            raise InputError(
                f"Expected {name} of at least {least:g}, and only for NSTEP several, rising; got "
                f"{_text(values)} for {self.kind}."
            )

    def __call__(self, step: float) -> float:
        """The LR at a step."""
        values = self.values
        if self.kind in _DECAYS:
            return float(values["k0"]) * _DECAYS[self.kind][0](step, values)
        low, high = sorted((values["k0"], values["k1"]))
        return float((high - low) * _BETWEEN[self.kind][0](step, values) + low)

    def __str__(self) -> str:
        """LRBench's notation."""
        given = [f"{name}_{_text(self.values[name])}" for name in KINDS[self.kind]]
        place = next((i for i, text in enumerate(given) if text[0] == "l"), len(given))
        given.insert(place, f"lrPolicy_{self.kind}")
        return "+".join(given)


@dataclass(frozen=True)
class Composition:
    """Policies one after another, each from its own step 0: homogeneous or heterogeneous.

    Attributes:
        policies: The policies.
        boundaries: Steps at which the second and each further one take over, rising.

    Raises:
        InputError: The numbers of policies and boundaries do not fit.
    """

    policies: tuple[LRPolicy, ...]
    boundaries: tuple[int, ...]

    def __post_init__(self) -> None:
        edges = (0, *self.boundaries)
        if len(edges) != len(self.policies) or any(a >= b for a, b in pairwise(edges)):
            raise InputError(
                f"Expected {len(self.policies) - 1} rising boundaries for {len(self.policies)} "
                f"policies, got {', '.join(map(str, self.boundaries)) or 'none'}."
            )

    def __call__(self, step: float) -> float:
        """The LR at a step."""
        place = bisect_right(self.boundaries, step)
        return self.policies[place](step - (0, *self.boundaries)[place])

    def __str__(self) -> str:
        """LRBench's notation."""
        return f"{'-'.join(map(str, self.policies))}-AT-{'+'.join(map(str, self.boundaries))}"


def parse_policy(text: str) -> LRPolicy | Composition:
    """Read a policy or a composition from LRBench's notation.

    Raises:
        InputError: It cannot be read.
    """
    policies, at, boundaries = text.partition("-AT-")
    # A sign behind an e is that of an exponent, behind a _ that of a number.
    parts = tuple(_parse_one(part) for part in re.split(r"(?<![eE_])-", policies))
    if not at:
        if len(parts) > 1:
            raise InputError(f"Expected -AT- and boundaries behind several policies, got {text!r}.")
        return parts[0]
    if not re.fullmatch(r"\d+(\+\d+)*", boundaries):
        raise InputError(f"Expected whole steps behind -AT-, joined by +, got {boundaries!r}.")
    return Composition(parts, tuple(map(int, boundaries.split("+"))))


def _parse_one(text: str) -> LRPolicy:
    values: dict[str, Any] = {}
    last = ""
    for part in re.split(r"(?<![eE_])\+", text):
        name, _, value = part.partition("_")
        if name in values:
            raise InputError(f"Expected each name once, got {name!r} again in {text!r}.")
        if value:
            last = name
            values[name] = value if name == "lrPolicy" else _number(value, text)
        elif last == "l":  # further steps of NSTEP
            values["l"] = (*_steps(values["l"]), _number(part, text))
        else:
            raise InputError(f"Expected name_value, joined by +, got {part!r} in {text!r}.")
    kind = values.pop("lrPolicy", "")
    if kind == "NSTEP" and "l" in values:
        values["l"] = _steps(values["l"])
    return LRPolicy(kind, values)


def policy_lr(optimizer: Optimizer, policy: LRPolicy | Composition) -> LambdaLR:
    """A torch scheduler of a policy; groups keep the ratios of their LRs, the first is the unit.

    Raises:
        InputError: The first group's LR is not positive.
    """
    unit = check_unit(optimizer)
    return LambdaLR(optimizer, lambda step: policy(step) / unit)


class ChangeOnPlateau:
    """Goes through an ordered list of policies, on to the next where a metric stands still.

    Each policy starts from its step 0.

    Args:
        policies: The policies, in order.
        patience: Reports without improvement before the next one takes over.
        threshold: Relative improvement that counts.

    Raises:
        InputError: A setting cannot be used.
    """

    def __init__(
        self, policies: Sequence[LRPolicy], patience: int = 5, threshold: float = 1e-3
    ) -> None:
        if not policies or patience < 1:
            raise InputError(
                f"Expected policies and a patience of at least 1, got {len(policies)} and "
                f"{patience}."
            )
        self.policies, self.patience, self.threshold = tuple(policies), patience, threshold
        self.place = self._since = self._start = 0
        self._best = math.inf

    def __call__(self, step: int) -> float:
        """The LR at a step, under the policy that is in force."""
        return self.policies[self.place](step - self._start)

    def report(self, step: int, metric: float) -> None:
        """Report a metric, the lower the better, behind a step."""
        least = self.threshold * abs(self._best) if math.isfinite(self._best) else 0.0
        if metric < self._best - least:
            self._best, self._since = metric, 0
            return
        self._since += 1
        if self._since >= self.patience and self.place + 1 < len(self.policies):
            self.place, self._since, self._start = self.place + 1, 0, step

    def state_dict(self) -> dict[str, float]:
        """Return the state as plain values."""
        names = ("place", "_since", "_start", "_best")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take back what :meth:`state_dict` returned."""
        vars(self).update(state)


def _sigmoid(x: float) -> float:
    """1 / (1 + e^−x), without overflow."""
    return 1 / (1 + math.exp(-x)) if x > 0 else 1 - 1 / (1 + math.exp(x))


def _steps(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _number(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"Expected a number, got {text!r} in {whole!r}.") from None
    return int(value) if value.is_integer() and not re.search(r"[.eE]", text) else value


def _text(value: Any) -> str:
    return "+".join(map(repr, _steps(value)))
