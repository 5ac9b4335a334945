"""A trial as the policy database takes and gives it, with the checks of what may be stored."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from numbers import Real
from typing import Any

from lrenv.errors import InputError

STATUSES = ("done", "stopped", "diverged", "failed")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""JSON has no such numbers, so files and tables spell them out."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial: a task trained once under a policy.

    Attributes:
        uid: Unique name of the trial; the same trial has the same one everywhere.
        task: Readable name of the task.
        task_key: Hash of the task, ``Task.key()`` or the user's own.
        features: Numbers by which tasks are compared, see ``task_features``.
        policy_kind: Such as ``"lrbench"``, ``"expert"``, ``"learned"`` or ``"peer"``.
        policy: Name of the policy, or its notation in LRBench.
        parameters: Parameters of the policy, JSON values.
        seed: Seed of the trial.
        sweep: Name of the sweep, empty for none.
        status: One of ``STATUSES``; ``"stopped"`` is early.
        error: Message of a failed trial, or empty.
        steps: Optimizer steps taken.
        seconds: Duration, None where it is not known.
        metrics: Results by name; ``val_loss`` is what policies are compared by.
        curve: Columns by name, equally long, such as ``step``, ``loss`` and ``lr``; None where
            there is no value. Kept to the precision of float32.
        environment: Versions, data and kind of machine.
        created: ISO time, UTC.
    """

    uid: str
    task: str
    task_key: str
    features: dict[str, float]
    policy_kind: str
    policy: str
    parameters: dict[str, Any]
    seed: int
    sweep: str
    status: str
    error: str
    steps: int
    seconds: float | None
    metrics: dict[str, float]
    curve: dict[str, list[float | None]]
    environment: dict[str, str]
    created: str


@dataclass(frozen=True)
class Suggestion:
    """The best policy of a task that is like the one asked for.

    Attributes:
        distance: Sum of the absolute differences of the features.
        task: Name of the task.
        task_key: Hash of the task.
        policy_kind: Kind of its best policy.
        policy: Name or notation of its best policy.
        parameters: Parameters of its best policy.
        val_loss: Validation loss that the policy reached.
        uid: The trial that reached it.
        trials: Number of trials of the task.
    """

    distance: float
    task: str
    task_key: str
    policy_kind: str
    policy: str
    parameters: dict[str, Any]
    val_loss: float
    uid: str
    trials: int


def record_from(values: Mapping[str, Any]) -> TrialRecord:
    """Make a record of its fields, as Python has them or :func:`to_plain` wrote them.

    Raises:
        InputError: A field is missing, unknown, or has a value that cannot be stored.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"Expected the fields of a trial, got {values!r:.60}.")
    odd = sorted(set(values) ^ set(_CHECKS))
    if odd:
        what = "an unknown field" if odd[0] in values else "no field"
        raise InputError(f"Expected the fields {', '.join(_CHECKS)}; got {what} {odd[0]!r}.")
    checked = {}
    for name, (expected, check) in _CHECKS.items():
        try:
            checked[name] = check(values[name])
        except (ValueError, TypeError, OverflowError, AttributeError):
            got = f"{values[name]!r:.60}"
            raise InputError(f"Expected {name} of a trial to be {expected}, got {got}.") from None
    return TrialRecord(**checked)


def checked_record(record: TrialRecord) -> TrialRecord:
    """Return the record with plain, sorted values, or raise :class:`InputError`."""
    return record_from(vars(record))


def to_plain(record: TrialRecord) -> dict[str, Any]:
    """Return the fields as values that strict JSON has."""
    plain = {field.name: getattr(record, field.name) for field in fields(record)}
    plain["metrics"] = spelled_out(record.metrics)
    plain["curve"] = {k: [_spell(v) for v in column] for k, column in record.curve.items()}
    return plain


def spelled_out(numbers: Mapping[str, float]) -> dict[str, float | str]:
    """Return numbers with those that JSON lacks as text."""
    return {name: _spell(value) for name, value in numbers.items()}


def read_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Read numbers, those that JSON lacks as text, and sort them by name."""
    return {_name(name): _number(values[name]) for name in sorted(values)}


def _spell(value: Any) -> Any:
    if value is None or math.isfinite(value):
        return value
    return next(name for name, number in _NON_FINITE.items() if str(number) == str(value))


def _number(value: Any) -> float:
    if isinstance(value, str):
        return _NON_FINITE[value] if value in _NON_FINITE else _refuse()
    return float(value) if isinstance(value, Real) else _refuse()


def _refuse() -> Any:
    raise ValueError


def _text(value: str) -> str:
    value.encode()
    return _refuse() if "\0" in value else str(value)


def _name(value: str) -> str:
    return _text(value) or _refuse()


def _message(value: str) -> str:
    return value.encode(errors="replace").decode().replace("\0", "")


def _status(value: str) -> str:
    return value if value in STATUSES else _refuse()


def _whole(value: Any) -> int:
    whole = operator.index(value)
    return whole if -(2**63) <= whole < 2**63 else _refuse()


def _steps(value: Any) -> int:
    steps = _whole(value)
    return steps if 0 <= steps < 2**31 else _refuse()


def _seconds(value: Any) -> float | None:
    seconds = None if value is None else _number(value)
    return seconds if seconds is None or math.isfinite(seconds) else _refuse()


def _features(values: Mapping[str, Any]) -> dict[str, float]:
    features = read_numbers(values)
    fit = all(math.isfinite(v) and re.fullmatch(r"[\w .:/+-]+", k) for k, v in features.items())
    return features if fit else _refuse()


def _parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(values), sort_keys=True, allow_nan=False))
    return plain


def _environment(values: Mapping[str, str]) -> dict[str, str]:
    return {_name(name): _text(values[name]) for name in sorted(values)}


def _curve(values: Mapping[str, Any]) -> dict[str, list[float | None]]:
    curve = {_name(name): [_point(v) for v in values[name]] for name in sorted(values)}
    return curve if len({len(column) for column in curve.values()}) < 2 else _refuse()


def _point(value: Any) -> float | None:
    number = None if value is None else _number(value)
    return None if number is None or math.isnan(number) else number


def _created(value: str) -> str:
    """The time in UTC, as texts are sorted; one without an offset is taken as UTC."""
    time = datetime.fromisoformat(value)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC).isoformat()


_TEXT = ("text", _text)
_FILLED = ("text that is not empty", _name)
_NUMBERS = ("numbers by name", read_numbers)
_CHECKS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "uid": _FILLED,
    "task": _TEXT,
    "task_key": _FILLED,
    "features": ("finite numbers by name, of letters, digits and .:/+-", _features),
    "policy_kind": _TEXT,
    "policy": _TEXT,
    "parameters": ("JSON values by name", _parameters),
    "seed": ("a whole number of 64 bits", _whole),
    "sweep": _TEXT,
    "status": (f"one of {', '.join(STATUSES)}", _status),
    "error": ("text", _message),
    "steps": ("a whole number from 0", _steps),
    "seconds": ("a finite number or None", _seconds),
    "metrics": _NUMBERS,
    "curve": ("equally long columns of numbers by name", _curve),
    "environment": ("text by name", _environment),
    "created": ("an ISO time", _created),
}
