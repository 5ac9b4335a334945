"""Functions of the user's own, named as ``module:name``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from lrenv.errors import InputError


def import_function(place: str, kind: str) -> Callable[..., Any]:
    """Import a function, also from the folder that the job runs in, here and in its workers.

    Args:
        place: Where it is, ``module:name``.
        kind: What it is, for the error.

    Raises:
        InputError: There is no such function.
    """
    module, _, name = place.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
        os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    try:
        function: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"Expected {kind} as module:name, got {place!r} ({error}).") from None
    if not callable(function):
        raise InputError(f"Expected a function, got {place!r}, a {type(function).__name__}.")
    return function  # type: ignore[no-any-return]
