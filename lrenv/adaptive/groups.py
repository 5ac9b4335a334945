"""Groups of parameters for Hi-DLR, and the choice of those worth fine-tuning.

Source: "A Hessian-informed differential learning rate" (Hi-DLR, arXiv 2501.06954).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from lrenv.adaptive.gen import GeNLR, HiDLR
from lrenv.errors import InputError


def group_parameters(
    model: nn.Module, by: str | Callable[[str, Tensor], str] = "kind"
) -> dict[str, list[Tensor]]:
    """Sort the trained parameters of a model into named groups, for Hi-DLR.

    Args:
        model: The model.
        by: ``"kind"``: LoRA's A and B, norms, biases, the head (the last matrix) and the rest;
            ``"layer"``: the module that a parameter belongs to; or a function from a parameter's
            name and value to the name of its group.

    Returns:
        The parameters of each group; none is empty.

    Raises:
        InputError: ``by`` is another word.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if by == "kind":
        norms = {
            f"{path}.{name}" if path else name
            for path, module in model.named_modules()
            if "norm" in type(module).__name__.lower()
            for name, _ in module.named_parameters(recurse=False)
        }
        matrices = [name for name, p in named if p.ndim > 1]
        head = matrices[-1] if matrices else ""
        by = lambda name, p: _kind(name, p, norms, head)  # noqa: E731
    elif by == "layer":
        by = lambda name, p: name.rpartition(".")[0]  # noqa: E731
    elif isinstance(by, str):
        raise InputError(f"Expected groups by kind, by layer or a function; got {by!r}.")
    groups: dict[str, list[Tensor]] = {}
    for name, param in named:
        groups.setdefault(by(name, param), []).append(param)
    return groups


def freeze_to_budget(scheduler: HiDLR, budget: int) -> list[int]:
    """Freeze the least influential groups: an automatic parameter-efficient fine-tuning.

    Groups are kept in the order of their influence while their parameters fit the budget; the
    others neither get gradients nor are updated from then on.

    Args:
        scheduler: A scheduler that has made an estimate.
        budget: Parameters that may be trained, at most.

    Returns:
        The indices of the groups that are still trained.

    Raises:
        InputError: The scheduler is a GeNLR, there is no estimate yet, or nothing fits the budget.
    """
    if isinstance(scheduler, GeNLR):
        raise InputError(
            "Expected a HiDLR, got a GeNLR, which has one LR for all groups; use HiDLR."
        )
    if not any(scheduler.influence):
        raise InputError("Expected an estimate of influences, got none yet; train a few steps.")
    groups = scheduler.optimizer.param_groups
    sizes = [sum(p.numel() for p in group["params"]) for group in groups]
    kept, left = [], budget
    for k in sorted(range(len(groups)), key=lambda k: -scheduler.influence[k]):
        if sizes[k] <= left:
            kept.append(k)
            left -= sizes[k]
    if not kept:
        raise InputError(
            f"Expected a budget of at least {min(sizes)} parameters, the smallest group, got "
            f"{budget}; raise it, or make smaller groups."
        )
    for k, group in enumerate(groups):
        for param in group["params"]:
            if k not in kept:
                param.requires_grad_(False)
                param.grad = None
    return sorted(kept)


def _kind(name: str, param: Tensor, norms: set[str], head: str) -> str:
    if "lora_A" in name or "lora_B" in name:
        return "lora_A" if "lora_A" in name else "lora_B"
    if name in norms:
        return "norm"
    if name == head:
        return "head"
    return "bias" if param.ndim < 2 else "rest"
