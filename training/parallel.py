"""Independent calls side by side: in this process, as Ray tasks here, or on a cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self, TypeVar

import torch

from lrenv.errors import InputError, ResourceError

R = TypeVar("R")

_LOST_WORKERS = 100
_IN_FLIGHT = 16
_PATIENCE = 10


class Workers:
    """Calls a function on many items, as Ray tasks where there is more than one worker.

    Ray serves within a ``with`` block alone; where it runs already, its own workers serve.

    Results come in the order of the items, and a call whose worker is lost is made anew. So they do
    not depend on the workers, as long as the function draws its random numbers from a seed in its
    item.

    Args:
        workers: Ray tasks side by side on this machine; 1 stays in this process, without Ray.
        ray_address: A Ray cluster to use instead, as far as it has free CPUs: ``"auto"``,
            ``"host:port"`` or ``"ray://host:port"``.

    Raises:
        InputError: There is fewer than one worker; on entering, Ray is not installed or there is no
            cluster at the address.
    """

    def __init__(self, workers: int = 1, ray_address: str | None = None) -> None:
        if workers < 1:
            raise InputError(f"Expected workers of at least 1, got {workers}; raise it.")
        self._workers, self._address = workers, ray_address
        self._ray: Any = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self._workers > 1 or self._address:
            self._ray = self._stack.enter_context(ray_cluster(self._workers, self._address))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._ray = None

    def starmap(
        self, function: Callable[..., R], items: Iterable[tuple[Any, ...]], *shared: object
    ) -> Iterator[R]:
        """Call ``function(*item, *shared)`` on each item.

        Args:
            function: A function of a module that every worker can import.
            items: Arguments that differ from call to call; read up to 16 a CPU ahead.
            shared: Arguments that all calls share; each travels to a machine once.

        Yields:
            The results, in the order of the items.

        Raises:
            ResourceError: Ray lost a call again and again, or the whole cluster.
            Exception: What the function raised first.
        """
        if self._ray is None:
            yield from (function(*item, *shared) for item in items)
            return
        task = self._ray.remote(num_cpus=1, max_retries=_LOST_WORKERS)(_call)
        task = task.options(name=function.__name__)
        parts = [self._ray.put(part) for part in shared]
        # More in flight than there are CPUs, so that none idles while the first takes long.
        limit = _IN_FLIGHT * max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        pending: deque[Any] = deque()
        for item in items:
            pending.append(task.remote(function, item, *parts))
            if len(pending) >= limit:
                yield self._result(pending.popleft())
        while pending:
            yield self._result(pending.popleft())

    def _result(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise ResourceError(
                f"Expected workers that last, got: {error}; see the memory and the logs of Ray. "
                "The same command goes on from here."
            ) from error


@contextmanager
def ray_cluster(workers: int, address: str | None = None) -> Iterator[Any]:
    """Serve Ray within a block; where it runs already, that one serves, and stays.

    Args:
        workers: CPUs of a cluster on this machine.
        address: A cluster to use instead, see :class:`Workers`.

    Yields:
        The module of Ray.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _import_ray()
    started = not ray.is_initialized()
    if started:
        _start(ray, workers, address)
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


IN_PROCESS = Workers()
"""Calls in this process, one after another."""


def _call(function: Callable[..., R], item: tuple[Any, ...], *shared: object) -> R:
    torch.set_num_threads(1)
    return function(*item, *shared)


def _start(ray: Any, workers: int, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # "local", or else Ray would follow $RAY_ADDRESS.
        ray.init("local", num_cpus=workers, include_dashboard=False, **quiet)
        return
    try:
        _check_reachable(address)
        ray.init(address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"Expected a Ray cluster at {address}, got: {error}; check the address "
            "and Ray's token, or start one by `ray start --head`."
        ) from None


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError(
            "Expected Ray for more than one worker, got no such module; "
            'install it: pip install -e ".[ray]" in the checkout of lrenv.'
        ) from None
    return ray


def _check_reachable(address: str) -> None:
    """Fail soon: Ray itself would go on trying for minutes."""
    if ":" in address:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host, int(port)), _PATIENCE).close()
