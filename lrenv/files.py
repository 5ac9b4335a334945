"""Files that survive a kill: written beside their place, then renamed into it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from lrenv.errors import InputError


def cache_folder() -> Path:
    """Folder of what can be made again: ``$LRENV_CACHE``, or ``~/.cache/lrenv``."""
    return Path(os.environ.get("LRENV_CACHE") or "~/.cache/lrenv").expanduser()


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


def write_atomic(path: Path, write: Callable[[Path], object], mode: int = 0o644) -> None:
    """Let ``write`` fill a temporary file or folder beside ``path``, then rename it to ``path``.

    Raises:
        InputError: There is no room, or it may not be written there; ``path`` stays as it was.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.chmod(mode)  # safetensors writes for the owner alone
        temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"Expected room to write {path}, got: {reason}; free space or name another folder."
        ) from None
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)
