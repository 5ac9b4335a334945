"""Run folders: settings, results and training states in files that survive a kill."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrenv.errors import InputError
from lrenv.files import write_atomic

# what torch.load raises on altered bytes
_DAMAGE = (OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError)


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically."""
    text = json.dumps(data, indent=1) + "\n"
    write_atomic(path, lambda p: p.write_text(text))


def read_json(path: Path) -> Any:
    """Read JSON, or raise :class:`InputError` if the file is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(
            f"Expected a JSON file at {path}, got: no such file; name another."
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"Expected a JSON file at {path}, got: {error}; delete it.") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors atomically as safetensors."""
    ready = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomic(path, lambda p: save_file(ready, p))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors that :func:`write_tensors` wrote."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"Expected tensors at {path}, got: {error}; delete it.") from None


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a nested training state of tensors and plain values atomically."""
    write_atomic(path, lambda p: torch.save(dict(state), p))


def read_state(path: Path) -> dict[str, Any]:
    """Read what :func:`write_state` wrote; refuses anything but tensors and plain values."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (*_DAMAGE, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"Expected a state at {path}, got: {reason}; delete it.") from None
    return state


def check_settings(folder: Path, settings: Any, free: Set[str], **further: object) -> None:
    """Write the settings of a run folder, or compare them with those there.

    Call it when nothing else can be refused any more: it binds the folder.

    Args:
        folder: The run folder.
        settings: A dataclass of settings.
        free: Names of settings that may change between restarts.
        **further: What else must not change, such as the name of the data, where it is known.

    Raises:
        InputError: The folder belongs to a run with other settings.
    """
    now = json.loads(json.dumps(asdict(settings) | further, default=str))
    path = folder / "settings.json"
    if path.exists():
        before = read_json(path)
        free = free | (further.keys() - before.keys())
        changed = [k for k in now if k not in free and before.get(k) != now[k]]
        if changed:
            k = changed[0]
            raise InputError(
                f"Expected the settings that the run in {folder} was started with, got "
                f"{k}={now[k]!r} instead of {before.get(k)!r}; use another --output."
            )
    write_json(path, now)
