"""How well LC's cheap forms rank tensors: ``python benchmarks/lc_ranks.py``.

Spearman's rank correlation over the tensors of a trainee between the exact LC, the sum of g²/(2h)
over a tensor's parameters with positive h, and each form of ``lrenv.adaptive.LCSensitivityLR``, on
three small trainees in training under Adam; mean over steps and seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
import tyro
from rich.table import Table
from scipy.stats import spearmanr
from torch.nn.attention import SDPBackend, sdpa_kernel

from lrenv.adaptive.lc import lc_exact, lc_frobenius
from lrenv.statistics import lc_nuclear
from lrenv.trainees.convnet import ConvNetSpec
from lrenv.trainees.decoder import DecoderSpec
from lrenv.trainees.mlp import MLPSpec
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import RunSpec
from lrenv.trainees.stacked import trained
from lrenv.trainees.tasks import DataSpec, load_data
from lrenv.training.progress import console, track
from lrenv.training.runfolder import write_json

STEPS = (10, 40, 150)
LR = 3e-3
_RUN = {"batch_size": 32, "total_steps": max(STEPS) + 2}
TRAINEES: dict[str, tuple[DataSpec, RunSpec]] = {
    "MLP 64-12-12-10": (DataSpec("digits"), MLPSpec((12, 12), "tanh", **_RUN)),
    "convnet 3-6": (DataSpec("digits"), ConvNetSpec((3, 6), "gelu", batch_norm=True, **_RUN)),
    "decoder of width 8": (DataSpec("python-source", context=8), DecoderSpec(8, 2, 2, **_RUN)),
}


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    seeds: int = 3
    """Seeds of each trainee."""
    output: Path = Path("runs/lc_ranks.json")
    """Where the figures go."""


def main(settings: Settings) -> None:
    """Measure, print the table, write the JSON file."""
    torch.set_num_threads(1)
    results = {}
    for name, (data, spec) in TRAINEES.items():
        rows = []
        for seed in track(range(settings.seeds), name):
            rows += _correlations(SingleTrainee(spec, load_data(data), seed))
        results[name] = {form: mean(row[form] for row in rows) for form in rows[0]}
    table = Table("trainee", *next(iter(results.values())))
    for name, row in results.items():
        table.add_row(name, *(f"{value:.2f}" for value in row.values()))
    console.print(table)
    write_json(settings.output, results)


def _correlations(trainee: SingleTrainee) -> list[dict[str, float]]:
    params, rows = trained(trainee.model), []
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    for step in range(max(STEPS) + 1):
        trainee.backward()
        grads = [p.grad for p in params if p.grad is not None]
        if step in STEPS:
            with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
                loss = trainee.batch_loss()
            exact = [float(lc.sum()) for lc in lc_exact(loss, params)]
            pairs = list(zip(params, grads, strict=True))
            forms = {
                "nuclear": [float(lc_nuclear(p.detach(), g)) for p, g in pairs],
                "frobenius": [float(lc_frobenius(p.detach(), g)) for p, g in pairs],
                "curvature": [
                    float(_secant(p.detach(), g, *old))
                    for (p, g), old in zip(pairs, before, strict=True)
                ],
                "gradient norm": [float(g.norm()) for g in grads],
            }
            rows.append(
                {form: float(spearmanr(exact, values)[0]) for form, values in forms.items()}
            )
        before = [(p.detach().clone(), g.clone()) for p, g in zip(params, grads, strict=True)]
        trainee.update(torch.tensor([LR]))
    return rows


def _secant(
    theta: torch.Tensor, grad: torch.Tensor, last_theta: torch.Tensor, last_grad: torch.Tensor
) -> torch.Tensor:
    second = ((grad - last_grad) / (theta - last_theta)).abs()
    lc = grad.square() / (2 * second)
    return lc[lc.isfinite()].sum()


if __name__ == "__main__":
    main(tyro.cli(Settings))
