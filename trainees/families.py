"""The declared families of training tasks, mixtures of :mod:`lrenv.trainees.kinds` and hard ones.

None sees an image at full size, Fashion-MNIST, digits or a real table, which
:mod:`lrenv.trainees.unseen` tests on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lrenv.errors import InputError
from lrenv.imports import import_function
from lrenv.trainees.hard_kinds import lasting, photo, picture, repeated, rough, table
from lrenv.trainees.kinds import (
    adapted,
    brief,
    convnet,
    decoder,
    easy,
    long,
    plain,
    regression,
    scarce,
    varied,
)
from lrenv.trainees.tasks import Task


def training_task(index: int, family: str = "varied") -> Task:
    """Draw training task number ``index``; the same number always gives the same task.

    Args:
        index: The number of the task.
        family: A key of ``TRAINING_FAMILIES``, or where else a function from a number to a task is,
            ``module:name``.

    Raises:
        InputError: There is no such family, or the function returns no task.
    """
    if ":" in family:
        task = import_function(family, "a family of tasks")(index)
        if not isinstance(task, Task):
            raise InputError(
                f"Expected {family} to return a Task, got a {type(task).__name__}; see "
                "lrenv.trainees.kinds for examples."
            )
        return task
    if family not in TRAINING_FAMILIES:
        raise InputError(
            f"Expected a training family among {', '.join(TRAINING_FAMILIES)}; got {family!r}."
        )
    return TRAINING_FAMILIES[family](index)


def short_tasks(numbers: Iterable[int], family: str, longest: int) -> Iterator[tuple[int, Task]]:
    """Draw tasks of a family as they are read, and yield those that are short with their numbers.

    Args:
        numbers: The numbers to draw.
        family: See :func:`training_task`.
        longest: Length of a short task in optimizer steps, at most.
    """
    drawn = ((number, training_task(number, family)) for number in numbers)
    return (pair for pair in drawn if pair[1].spec.total_steps <= longest)


def _further(index: int) -> Task:
    """Tasks of the balanced family behind those that its own training gets to.

    A policy of that family may so go on with the broad one and be measured on tasks new to it; one
    that was trained on repeated or rough tasks alone may not.
    """
    return _balanced(_FURTHER + index)


def _take_turns(*families: Callable[[int], Task]) -> Callable[[int], Task]:
    return lambda index: families[index % len(families)](index // len(families))


_mixed = _take_turns(varied, plain)
_balanced = _take_turns(
    plain,
    _take_turns(convnet, varied),
    _take_turns(regression, scarce, easy),
    _take_turns(decoder, adapted, long, brief),
)
_broad = _take_turns(_further, repeated, rough)
_diverse = _take_turns(_broad, _take_turns(picture, table, lasting))
_assorted = _take_turns(_diverse, photo)
_sundry = _take_turns(_diverse, _take_turns(_further, photo))
_general = _take_turns(_mixed, _take_turns(convnet, decoder, adapted, long))
TRAINING_FAMILIES: dict[str, Callable[[int], Task]] = {
    "varied": varied,
    "plain": plain,
    "mixed": _mixed,
    "convnet": convnet,
    "decoder": decoder,
    "adapted": adapted,
    "general": _general,
    "regression": regression,
    "scarce": scarce,
    "easy": easy,
    "brief": brief,
    "wide": _take_turns(_general, _take_turns(regression, scarce, easy, brief)),
    "balanced": _balanced,
    "repeated": repeated,
    "rough": rough,
    "broad": _broad,
    "picture": picture,
    "table": table,
    "lasting": lasting,
    "diverse": _diverse,
    "photo": photo,
    "assorted": _assorted,
    "sundry": _sundry,
}
"""Families of training tasks; ``"mixed"``, ``"general"``, ``"wide"``, ``"balanced"``, of which a
quarter are plain MLPs, ``"broad"``, ``"diverse"``, of which half are broad, and ``"assorted"`` and
``"sundry"``, of which half are diverse, take turns between others."""

HELD_OUT_NUMBERS = range(1000, 2000)
"""Numbers of the tasks that a family does not train on; they select and measure.

Families share tasks under other numbers: a policy that goes on in another one may have been
trained, by demonstration, on tasks that are held out there.
"""

_FURTHER = 2 * 10**6


def training_numbers(n_tasks: int) -> list[int]:
    """Numbers of the first tasks of a family that are not held out."""
    behind = range(HELD_OUT_NUMBERS.stop, n_tasks + len(HELD_OUT_NUMBERS))
    return [*range(min(n_tasks, HELD_OUT_NUMBERS.start)), *behind]
