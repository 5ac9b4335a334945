"""What the processes of a distributed job must agree on; nothing where there is one process.

All ranks must have the same LR, so every function here is called by all of them, at the same steps.
The processes are those of torch.distributed's default group, training one model between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch import distributed as dist


def several() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def mean(losses: Tensor) -> Tensor:
    """Mean over all ranks."""
    return total(losses) / dist.get_world_size() if several() else losses


def mean_where_given(value: float | None, like: Tensor) -> Tensor | None:
    """Mean over the ranks that have a value, shaped like a tensor; None if no rank has one."""
    if not several():
        return None if value is None else torch.full_like(like, value)
    row = [0.0, 0.0] if value is None or math.isnan(value) else [value, 1.0]
    summed, count = total(torch.tensor(row, device=like.device)).tolist()
    return torch.full_like(like, summed / count) if count else None


def share(lr: Tensor) -> None:
    """Give all ranks the first one's LR, in place."""
    if several():
        dist.broadcast(lr, 0)


def total(sums: Tensor) -> Tensor:
    """Sum over all ranks."""
    out = sums.contiguous().clone()
    dist.all_reduce(out)
    return out


def total_of(params: Sequence[Tensor]) -> Callable[[Tensor], Tensor] | None:
    """What sums over the shards of parameters; None where every process has them whole."""
    return total if several() and any(hasattr(p, "to_local") for p in params) else None


def own_shard(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor (FSDP) that this process has, or the tensor."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local
