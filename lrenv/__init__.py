"""The learning-rate POMDP and ``LearnedLR``, the drop-in scheduler.

Public names load on first use, so that ``import lrenv`` costs next to nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrenv.env import LRScheduleEnv
    from lrenv.errors import InputError, LrenvError, PolicyFileError
    from lrenv.policies.frozen import FrozenPolicy, load_policy
    from lrenv.scheduler import LearnedLR

_HOMES = {
    "FrozenPolicy": "lrenv.policies.frozen",
    "InputError": "lrenv.errors",
    "LRScheduleEnv": "lrenv.env",
    "LearnedLR": "lrenv.scheduler",
    "LrenvError": "lrenv.errors",
    "PolicyFileError": "lrenv.errors",
    "load_policy": "lrenv.policies.frozen",
}

__version__ = "0.1.0"
__all__ = [
    "FrozenPolicy",
    "InputError",
    "LRScheduleEnv",
    "LearnedLR",
    "LrenvError",
    "PolicyFileError",
    "load_policy",
]

# Where gymnasium is imported first, as an import sorter puts it, its registry knows our
# environments from here on; else `import lrenv.registration` does it.
if "gymnasium" in sys.modules:
    import_module("lrenv.registration")


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
