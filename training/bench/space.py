"""Search spaces over LRBench's policies (LRBench++, arXiv 2309.08859), and ways to walk them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import optuna

from lrenv.errors import InputError
from lrenv.policies.lrbench import KINDS, Composition, LRPolicy

Walk = Literal["grid", "random", "bayesian"]
Policy = LRPolicy | Composition

_WAVE_PARTS = (1, 2, 3, 4, 6, 8)
"""Waves in a run, at most about as many."""


@dataclass(frozen=True)
class SearchSpace:
    """Policies of a run, alone or one after another.

    Attributes:
        kinds: Kinds of policies, keys of :data:`lrenv.policies.lrbench.KINDS`.
        low: Lowest LR of a policy's peak.
        high: Highest LR of a policy's peak.
        total_steps: Length of the run in optimizer steps.
        segments: Policies one after another in a run.
        mixed: Whether each of them is of a kind of its own (a heterogeneous composition).

    Raises:
        InputError: A range is empty, or there is no such policy.
    """

    kinds: tuple[str, ...]
    low: float
    high: float
    total_steps: int
    segments: int = 1
    mixed: bool = True

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise InputError(
                f"Expected policies among {', '.join(KINDS)}; got {', '.join(unknown) or 'none'}."
            )
        if not 0 < self.low < self.high < math.inf:
            raise InputError(
                f"Expected a range of LRs from low to a higher high, got {self.low:g} to "
                f"{self.high:g}; widen it."
            )
        if not 1 <= self.segments <= self.total_steps // 2:
            raise InputError(
                f"Expected from 1 segment to {self.total_steps // 2}, half the steps of the run; "
                f"got {self.segments}."
            )

    def draw(self, trial: optuna.trial.BaseTrial) -> Policy:
        """Draw a policy, with its parameters as Optuna suggests them."""
        if self.segments == 1:
            return self._draw_one(trial, "", self.total_steps, self._draw_kind(trial, ""))
        shares = [trial.suggest_float(f"share{i}", 0.2, 1.0) for i in range(self.segments)]
        edges = [self.total_steps * sum(shares[:i]) / sum(shares) for i in range(self.segments + 1)]
        bounds = [max(i, round(edge)) for i, edge in enumerate(edges)]
        kind = "" if self.mixed else self._draw_kind(trial, "")
        policies = []
        for i in range(self.segments):
            own = kind or self._draw_kind(trial, f"{i}.")
            policies.append(self._draw_one(trial, f"{i}.", bounds[i + 1] - bounds[i], own))
        return Composition(tuple(policies), tuple(bounds[1:-1]))

    def grid(self, points: int) -> list[Policy]:
        """Each kind at ``points`` peaks, its other parameters in the middle of their ranges.

        In a composition each segment's peak is a third of that before.

        Raises:
            InputError: There are fewer than two points.
        """
        if points < 2:
            raise InputError(f"Expected at least 2 points, got {points}; raise them.")
        ratio = (self.high / self.low) ** (1 / (points - 1))
        return [
            self.draw(_Middle(kind, self.low * ratio**i))
            for kind in self.kinds
            for i in range(points)
        ]

    def _draw_kind(self, trial: optuna.trial.BaseTrial, place: str) -> str:
        return str(trial.suggest_categorical(f"{place}kind", self.kinds))

    def _draw_one(
        self, trial: optuna.trial.BaseTrial, place: str, steps: int, kind: str
    ) -> LRPolicy:
        def number(name: str, low: float, high: float, log: bool = False) -> float:
            return float(trial.suggest_float(f"{place}{kind}.{name}", low, high, log=log))

        peak = float(trial.suggest_float(f"{place}peak", self.low, self.high, log=True))
        values: dict[str, Any] = {"k0": peak}
        if "k1" in KINDS[kind]:
            values["k1"] = peak * number("floor", 1e-4, 0.3, log=True)
        if kind == "POLY":
            values |= {"p": number("p", 0.5, 3.0), "l": steps}
        elif kind == "STEP":
            length = max(1, round(steps * number("length", 0.1, 0.6, log=True)))
            values |= {"gamma": number("gamma", 0.05, 0.9), "l": length}
        elif kind == "NSTEP":
            first = max(1, round(steps * number("first", 0.2, 0.7)))
            second = first + max(1, round((steps - first) * number("second", 0.2, 0.9)))
            values |= {"gamma": number("gamma", 0.05, 0.9), "l": (first, second)}
        elif kind == "INV":
            values |= {"gamma": number("gamma", 1.0, 100.0, log=True) / steps}
            values |= {"p": number("p", 0.5, 2.0)}
        elif kind == "SIG":
            values |= {"gamma": -number("slope", 5.0, 50.0, log=True) / steps}
            values |= {"l": max(1, round(steps * number("middle", 0.3, 0.9)))}
        elif "l" in KINDS[kind]:
            parts = trial.suggest_categorical(f"{place}{kind}.parts", _WAVE_PARTS)
            values |= {"l": max(1, round(steps / int(parts)))}
        if kind.endswith("EXP"):
            values["gamma"] = number("end", 1e-3, 0.5, log=True) ** (1 / steps)
        return LRPolicy(kind, {name: _short(values[name]) for name in KINDS[kind]})


def _short(value: Any) -> Any:
    """Six digits, as people write numbers."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


class _Middle(optuna.trial.FixedTrial):
    """Suggests a given kind and peak, and the middle of every other range."""

    def __init__(self, kind: str, peak: float) -> None:
        super().__init__({})
        self._kind, self._peak = kind, peak

    def suggest_float(
        self,
        name: str,
        low: float,
        high: float,
        *,
        step: float | None = None,
        log: bool = False,
    ) -> float:
        place, _, last = name.rpartition(".")
        if last == "peak":
            return float(self._peak / 3 ** int(place or 0))
        return math.sqrt(low * high) if log else (low + high) / 2

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._kind if name.endswith("kind") else choices[0]


class Proposals(Protocol):
    """What to try, by number; the same number may be asked for again after a restart."""

    def propose(self, index: int) -> tuple[str, dict[str, Any]] | None:
        """The policy of trial ``index`` in LRBench's notation and its draws; None at the end."""

    def learn(self, index: int, parameters: Mapping[str, Any], value: float | None) -> None:
        """Take in the outcome of a trial, the lower the better.

        It is infinite where the trial diverged, and None where it failed.
        """


class GridProposals:
    """The grid, in its order."""

    def __init__(self, space: SearchSpace, points: int) -> None:
        self._texts = [str(policy) for policy in space.grid(points)]

    def propose(self, index: int) -> tuple[str, dict[str, Any]] | None:
        """See :class:`Proposals`."""
        return (self._texts[index], {}) if index < len(self._texts) else None

    def learn(self, index: int, parameters: Mapping[str, Any], value: float | None) -> None:
        """A grid does not learn."""


class RandomProposals:
    """Independent draws, each from the seed and its own number."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space, self._seed = space, seed

    def propose(self, index: int) -> tuple[str, dict[str, Any]] | None:
        """See :class:`Proposals`."""
        sampler = optuna.samplers.RandomSampler(seed=_seed_of(self._seed, index))
        trial = optuna.create_study(sampler=sampler).ask()
        return str(self._space.draw(trial)), dict(trial.params)

    def learn(self, index: int, parameters: Mapping[str, Any], value: float | None) -> None:
        """Random search does not learn."""


class BayesianProposals:
    """Optuna's tree-structured Parzen estimator, over all outcomes so far."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space, self._seed, self._study = space, seed, optuna.create_study()
        self._open: dict[int, optuna.Trial] = {}

    def propose(self, index: int) -> tuple[str, dict[str, Any]] | None:
        """See :class:`Proposals`; random numbers are the seed's and the number's alone."""
        self._study.sampler = optuna.samplers.TPESampler(
            seed=_seed_of(self._seed, index), constant_liar=True
        )
        trial = self._open[index] = self._study.ask()
        return str(self._space.draw(trial)), dict(trial.params)

    def learn(self, index: int, parameters: Mapping[str, Any], value: float | None) -> None:
        """See :class:`Proposals`; a trial from before a restart is known by its parameters."""
        state = optuna.trial.TrialState
        trial = self._open.pop(index, None)
        if trial is not None:
            self._study.tell(trial, value, state=state.FAIL if value is None else state.COMPLETE)
        elif parameters and value is not None:
            fixed = optuna.trial.FixedTrial(dict(parameters))
            self._space.draw(fixed)
            self._study.add_trial(
                optuna.trial.create_trial(
                    params=dict(parameters), distributions=fixed.distributions, value=value
                )
            )


def _seed_of(seed: int, index: int) -> int:
    return (seed * 1_000_003 + index) % 2**32


def proposals(space: SearchSpace, walk: Walk, points: int, seed: int) -> Proposals:
    """The proposals of a way to walk the space.

    Args:
        space: The space.
        walk: ``"grid"``, ``"random"`` or ``"bayesian"``.
        points: Peaks of the grid.
        seed: Seed of the others.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if walk == "grid":
        return GridProposals(space, points)
    return RandomProposals(space, seed) if walk == "random" else BayesianProposals(space, seed)
