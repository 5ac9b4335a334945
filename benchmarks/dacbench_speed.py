"""Optimizer steps a second of DACBench's SGD environment on the MLPs of the registry.

Runs in an environment of its own, with the same torch as lrenv's::

    python -m venv ~/dacbench
    ~/dacbench/bin/pip install DACBench==0.5.6 torch torchvision
    ~/dacbench/bin/python benchmarks/dacbench_speed.py

DACBench names torch and torchvision only in its extra ``all``. Prints one line of JSON for each
trainee and mode: one learning rate an epoch, with one validation an epoch, or one a step, with a
validation on a tenth of the data at each. Inputs are rows of tensors, which spares DACBench most of
its loading; the MLP on full-size images is also measured on images as torchvision's MNIST has them,
decoded and normalised one by one, which is how DACBench comes.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from itertools import product
from typing import Any

import torch
import torchvision
from dacbench.benchmarks import SGDBenchmark
from dacbench.envs import SGDEnv, SGDInstance
from dacbench.envs.env_utils.sgd_utils import DATASETS
from torch import nn
from torch.utils.data import TensorDataset

_LR = 1e-3
_TOTAL_STEPS = 1000
_N_TRAIN, _N_TEST = 4000, 1000  # of the 5,000 images of MNIST-5k
_TRAIN_SHARE = 0.8  # as in all of DACBench's own instances; the rest validates
_TRANSFORMS = ("train_transform", "test_transform")
_AS_IT_COMES = DATASETS.copy()

# inputs, hidden units, batch size
TRAINEES = {"mlp-mnist-classic": (48, 48, 256), "mlp-mnist": (784, 128, 64)}


def main() -> None:
    """Measure each trainee and print its line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each figure, at least")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    cases = [(*case, False) for case in product(TRAINEES.items(), ("epoch", "step"))]
    cases += [(("mlp-mnist", TRAINEES["mlp-mnist"]), mode, True) for mode in ("epoch", "step")]
    for (name, shape), mode, images in cases:
        env = build_env(*shape, mode, images)
        run(env)
        done, spent = 0, 0.0
        while spent < seconds:
            n_steps, duration = run(env)
            done, spent = done + n_steps, spent + duration
        row = {"trainee": name, "mode": mode, "images": images, "steps_per_s": done / spent}
        print(json.dumps(row), flush=True)


def run(env: SGDEnv) -> tuple[int, float]:
    """Train to the end of one episode; optimizer steps, and seconds spent in ``env.step``."""
    env.reset()
    # DACBench builds AdamW whatever its instance says.
    env.optimizer = torch.optim.SGD(env.model.parameters(), lr=_LR, momentum=0.9)
    n_steps, truncated, began = 0, False, time.perf_counter()
    while not truncated:
        _, _, _, truncated, _ = env.step(_LR)
        n_steps += len(env.train_loader) if env.epoch_mode else 1
    return n_steps, time.perf_counter() - began


def build_env(n_inputs: int, n_hidden: int, batch_size: int, mode: str, images: bool) -> SGDEnv:
    """Build DACBench's environment around an MLP of that shape."""
    # Its loader asks torchvision for MNIST. Random digits replace the download; its random split
    # and its DataLoaders stay.
    torchvision.datasets.MNIST = _RandomImages if images else partial(_random_digits, n_inputs)
    benchmark = SGDBenchmark()
    epochs = mode == "epoch"
    per_epoch = int(_N_TRAIN * _TRAIN_SHARE) // batch_size
    benchmark.config.update(
        epoch_mode=epochs,
        dataset_config=_AS_IT_COMES if images else {"MNIST": dict.fromkeys(_TRANSFORMS)},
        cutoff=_TOTAL_STEPS // per_epoch if epochs else _TOTAL_STEPS,
        instance_set={
            0: SGDInstance(
                model=partial(_build_model, n_inputs, n_hidden),
                optimizer_type="SGD",
                optimizer_params={},
                dataset_path="",
                dataset_name="MNIST",
                batch_size=batch_size,
                fraction_of_dataset=1.0,
                train_validation_ratio=_TRAIN_SHARE,
                seed=0,
            )
        },
    )
    return benchmark.get_environment()


def _build_model(n_inputs: int, n_hidden: int) -> nn.Sequential:
    layers = [nn.Flatten(), nn.Linear(n_inputs, n_hidden), nn.ReLU(), nn.Linear(n_hidden, 10)]
    return nn.Sequential(*layers, nn.LogSoftmax(1))


def _random_digits(n_inputs: int, _root: str, train: bool, **_: Any) -> TensorDataset:
    n = _N_TRAIN if train else _N_TEST
    return TensorDataset(torch.randn(n, n_inputs), torch.randint(10, (n,)))


class _RandomImages(torchvision.datasets.MNIST):
    """Random images, which torchvision hands out as it does MNIST's."""

    def __init__(self, root: str, train: bool, transform: Any = None, **_: Any) -> None:
        n = _N_TRAIN if train else _N_TEST
        self.data = torch.randint(256, (n, 28, 28), dtype=torch.uint8)
        self.targets = torch.randint(10, (n,))
        self.transform, self.target_transform = transform, None


if __name__ == "__main__":
    main()
