"""Features by which the policy database compares tasks."""

from __future__ import annotations

from functools import lru_cache
from math import log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lrenv.trainees.specs import RunSpec
    from lrenv.trainees.tasks import DataSpec, Task

ADAPTIVE = 3.0
"""Weight of the optimizer's kind: LRs of SGD say nothing of those of Adam."""


def task_features(task: Task) -> dict[str, float]:
    """Return the numbers by which a task is compared with others.

    A factor of ten in a number counts 1, and so does another kind of model; an optimizer that is
    adaptive and one that is not are 3 apart. The seed does not count.

    | feature | is |
    |---|---|
    | ``adaptive`` | 3 for an optimizer that divides by the size of gradients, 0 otherwise |
    | ``momentum`` | log10 of 1 / (1 − momentum), of Adam's β₁: by how much it raises the step |
    | ``batch_size``, ``total_steps``, ``n_train``, ``parameters``, ``n_classes`` | log10 of the |
    | | number; parameters are those that are trained, classes also tokens or outputs |
    | ``lr_multiplier``, ``init_scale`` | log10 of the task's |
    | ``label_noise`` | share of random labels |
    | ``model:KIND`` | 1 for the kind of the task's own model |

    It loads the data and builds the model, once for each pair of them.
    """
    spec, optimizer = task.spec, task.spec.optimizer
    n_train, n_classes, n_params = _sizes(task.data, spec.shape)
    numbers = {
        "batch_size": spec.batch_size,
        "total_steps": spec.total_steps,
        "n_train": n_train,
        "parameters": n_params,
        "n_classes": n_classes,
        "lr_multiplier": spec.lr_multiplier,
        "init_scale": spec.init_scale,
    }
    return {
        "adaptive": 0.0 if optimizer.name == "sgd" else ADAPTIVE,
        "momentum": -log10(1.0 - optimizer.momentum),
        **{name: log10(number) for name, number in numbers.items()},
        "label_noise": spec.label_noise,
        f"model:{spec.kind}": 1.0,
    }


@lru_cache(maxsize=64)
def _sizes(data: DataSpec, spec: RunSpec) -> tuple[int, int, int]:
    """Training examples, classes, and parameters that are trained."""
    import torch

    from lrenv.trainees.tasks import load_data

    dataset = load_data(data)
    with torch.random.fork_rng(devices=[]):
        model = spec.build(dataset)
    n_params = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return len(dataset.x_train), dataset.n_classes, n_params
