"""Image sets in MNIST's IDX files: find them, download them through torchvision, read them."""

from __future__ import annotations

import gzip
import logging
import os
import queue
import shutil
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import Any

from torch import Tensor

from lrenv.errors import InputError, ResourceError

logger = logging.getLogger(__name__)

TIMEOUT_S = 5.0
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# Debian's dataset-fashion-mnist installs the very files that torchvision would download.
SYSTEM_FOLDERS = {"FashionMNIST": Path("/usr/share/datasets/fashion-mnist")}


def folder(kind: str, root: Path) -> Path:
    """Return the folder of the four files, the one that torchvision uses.

    Args:
        kind: The name of the set's class in ``torchvision.datasets``, such as "MNIST".
        root: Folder of downloaded data.
    """
    return root / kind / "raw"


@cache
def fetch(kind: str, root: Path) -> bool:
    """Make sure of the four files, from the system or the network; False if neither has them.

    The answer holds for the life of the process: an offline machine waits once.

    Raises:
        InputError: The files are not there and ``root`` cannot be written.
    """
    target = folder(kind, root)
    if all((target / name).is_file() for name in FILES):
        return True
    with _scratch(target) as scratch:
        if not (_copy_from_system(kind, scratch) or _download(kind, scratch)):
            return False
        # File by file and each at once, so that another process never reads half a file.
        for name in FILES:
            os.replace(folder(kind, scratch) / name, target / name)
    return True


def read(kind: str, root: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Read the training and the test images, uint8 ``(n, height, width)``, with their labels.

    Raises:
        ResourceError: A file is missing or damaged.
    """
    try:
        train, test = (_dataset_class(kind)(root, train=part) for part in (True, False))
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        place = folder(kind, root)
        raise ResourceError(
            f"expected the four whole files of {kind} in {place}, got: {error!r}; "
            "delete that folder to download them again"
        ) from error
    return (train.data, train.targets), (test.data, test.targets)


def _dataset_class(kind: str) -> Any:
    from torchvision import datasets

    return getattr(datasets, kind)


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """Make ``target`` and, for the time of the context, a scratch folder in it."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(prefix=".incoming-", dir=target)
    except OSError as error:
        raise InputError(
            f"expected a data folder that can be written, got {target} ({error.strerror}): "
            "set LRENV_DATA to another"
        ) from error
    try:
        yield Path(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _copy_from_system(kind: str, scratch: Path) -> bool:
    """Unpack the files that a system package has installed, if one has."""
    packed = SYSTEM_FOLDERS.get(kind)
    if packed is None or not all((packed / f"{name}.gz").is_file() for name in FILES):
        return False
    target = folder(kind, scratch)
    target.mkdir(parents=True)
    for name in FILES:
        with gzip.open(packed / f"{name}.gz") as source, open(target / name, "wb") as copy:
            shutil.copyfileobj(source, copy)
    return True


def _download(kind: str, scratch: Path) -> bool:
    """Let torchvision download the files, unless no mirror answers soon."""
    dataset_class = _dataset_class(kind)
    if not _any_answers(dataset_class.mirrors):
        return False
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        dataset_class(scratch, download=True)
    except (OSError, HTTPException, RuntimeError) as error:
        logger.warning("the download of %s broke off: %r", kind, error)
        return False
    finally:
        socket.setdefaulttimeout(previous)
    return True


def _any_answers(urls: list[str]) -> bool:
    """Whether a server answers within ``TIMEOUT_S``.

    In threads, as no socket timeout limits the look-up of a name, nor the sum over its addresses.
    """
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
    for url in urls:
        threading.Thread(target=_ask, args=(url, answers), daemon=True).start()
    deadline = time.monotonic() + TIMEOUT_S
    try:
        return any(answers.get(timeout=max(deadline - time.monotonic(), 0)) for _ in urls)
    except queue.Empty:
        return False


def _ask(url: str, answers: queue.SimpleQueue[bool]) -> None:
    """Put into ``answers`` whether the server answers, be it with an error status."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError:
        answers.put(True)
    except (OSError, HTTPException):
        answers.put(False)
    else:
        answers.put(True)
