"""Files that survive a kill: written beside their place, then renamed into it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrenv.errors import InputError


def make_folder(path: Path) -> Path:
    """Create a folder with its parents, or raise :class:`InputError` if it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(
            f"Expected a folder that can be written, got {path} ({error.strerror}); "
            "name another one or free space."
        ) from None
    return path


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it to ``path``."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically."""
    text = json.dumps(data, indent=1) + "\n"
    write_atomic(path, lambda p: p.write_text(text))


def read_json(path: Path) -> Any:
    """Read JSON, or raise :class:`InputError` if the file is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"Expected a JSON file at {path}, got: {error}.") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors atomically as safetensors."""
    ready = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomic(path, lambda p: save_file(ready, p))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors that :func:`write_tensors` wrote."""
    return load_file(path)


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a nested training state of tensors and plain values atomically."""
    write_atomic(path, lambda p: torch.save(dict(state), p))


def read_state(path: Path) -> dict[str, Any]:
    """Read what :func:`write_state` wrote; refuses anything but tensors and plain values."""
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def check_settings(folder: Path, settings: Any, free: Set[str]) -> None:
    """Write the settings of a run folder, or compare them with those there.

    Args:
        folder: The run folder.
        settings: A dataclass of settings.
        free: Names of settings that may change between restarts.

    Raises:
        InputError: The folder belongs to a run with other settings.
    """
    now = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}
    path = folder / "settings.json"
    if path.exists():
        before = read_json(path)
        changed = [k for k in now if k not in free and before.get(k) != now[k]]
        if changed:
            k = changed[0]
            raise InputError(
                f"Expected the settings that the run in {folder} was started with, got "
                f"{k}={now[k]!r} instead of {before.get(k)!r}; use another --output."
            )
    write_json(path, now)
