"""How quickly the policy database stores and answers: ``python benchmarks/database.py``.

Runs of ``--tasks`` made-up tasks go into an SQLite file and into a new PostgreSQL server of
Debian's packages, each with a curve of 200 points; then the nearest tasks of others are asked for.
"""

from __future__ import annotations

import os
import platform
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import tyro
from rich.table import Table

from lrenv.errors import ResourceError
from lrenv.training.bench.database import PolicyDatabase, TrialRecord
from lrenv.training.progress import console
from lrenv.training.runfolder import write_json

KINDS = ("mlp", "convnet", "decoder", "resnet18", "lora", "regressor", "autoencoder")
NUMBERS = {
    "batch_size": (0.5, 2.5),
    "total_steps": (2.0, 4.0),
    "n_train": (2.0, 5.0),
    "parameters": (2.0, 8.0),
    "n_classes": (0.0, 3.0),
    "lr_multiplier": (-1.0, 1.0),
    "init_scale": (-0.3, 0.3),
    "label_noise": (0.0, 0.3),
}
POINTS = 200
REPEATS = 20


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    runs: int = 50_000
    """Runs stored."""
    tasks: int = 2_000
    """Tasks that the runs are of."""
    output: Path = Path("benchmarks/results/database.json")
    """Where the figures go."""


def main(settings: Settings) -> None:
    """Store, ask, print the table, write the JSON file."""
    folder = Path(tempfile.mkdtemp(prefix="lrenv-bench-"))
    try:
        rows = {"sqlite": _measure(str(folder / "runs.sqlite"), settings)}
        with _postgresql(folder / "server") as url:
            rows["postgresql"] = _measure(url, settings)
    finally:
        shutil.rmtree(folder)
    table = Table("engine", *next(iter(rows.values())))
    for engine, row in rows.items():
        table.add_row(engine, *(f"{value:.4g}" for value in row.values()))
    console.print(table)
    own = {key: value for key, value in asdict(settings).items() if key != "output"}
    machine = {"cpu": platform.machine(), "cores": os.cpu_count(), "points": POINTS}
    write_json(settings.output, {"settings": own | machine, "results": rows})


def task(number: int) -> dict[str, float]:
    """Features of a made-up task."""
    draw = random.Random(f"task {number}")
    features = {name: draw.uniform(*limits) for name, limits in NUMBERS.items()}
    adaptive, momentum = draw.choice((0.0, 3.0)), draw.choice((0.0, 1.0))
    return features | {
        "adaptive": adaptive,
        "momentum": momentum,
        f"model:{draw.choice(KINDS)}": 1.0,
    }


def run(number: int, tasks: int) -> TrialRecord:
    """A made-up run with its curve."""
    draw = random.Random(f"run {number}")
    losses = [2.0 * 0.99**i + 0.1 * draw.random() for i in range(POINTS)]
    return TrialRecord(
        uid=f"run-{number}",
        task=f"task-{number % tasks}",
        task_key=f"key-{number % tasks}",
        features=task(number % tasks),
        policy_kind="lrbench",
        policy="COS",
        parameters={"k0": 10.0 ** draw.uniform(-5, 0), "k1": 0.0, "l": 100},
        seed=number,
        sweep=f"sweep-{number % 40}",
        status=draw.choice(("done", "done", "done", "stopped", "diverged")),
        error="",
        steps=1000,
        seconds=draw.uniform(1, 100),
        metrics={"val_loss": draw.random(), "test_loss": draw.random(), "top1": draw.random()},
        curve={
            "step": [float(5 * i) for i in range(POINTS)],
            "loss": list(losses),
            "lr": [1e-3 * (1 - i / POINTS) for i in range(POINTS)],
            "val_loss": [loss if i % 10 == 0 else None for i, loss in enumerate(losses)],
        },
        environment={"lrenv": "0.1.0", "torch": "2.6.0"},
        created=f"2026-01-01T{number % 24:02d}:00:00+00:00",
    )


def _measure(place: str, settings: Settings) -> dict[str, float]:
    with PolicyDatabase(place) as database:
        start = time.perf_counter()
        added = database.add(run(i, settings.tasks) for i in range(settings.runs))
        stored = time.perf_counter() - start
        questions = [task(-1 - i) for i in range(REPEATS)]
        return {
            "runs": added,
            "stored a second": added / stored,
            "similar, ms": _median_ms(lambda i: database.similar(questions[i])),
            "list of 20, ms": _median_ms(lambda i: database.trials(limit=20)),
            "sweep with curves, ms": _median_ms(
                lambda i: database.trials(sweep=f"sweep-{i}", curves=True, limit=100)
            ),
            "counts, ms": _median_ms(lambda i: database.counts()),
        }


def _median_ms(ask: Any) -> float:
    times = []
    for i in range(REPEATS):
        start = time.perf_counter()
        ask(i)
        times.append(1000 * (time.perf_counter() - start))
    return median(times)


@contextmanager
def _postgresql(folder: Path) -> Iterator[str]:
    """A server of its own with PostgreSQL's default settings, on a socket in the folder."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise ResourceError(
            "expected PostgreSQL's server in /usr/lib/postgresql, got none: "
            "apt-get install postgresql"
        )
    folder.mkdir()
    as_user = []
    if os.geteuid() == 0:
        folder.parent.chmod(0o755)
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]

    def call(program: str, *args: str) -> None:
        command = [*as_user, str(found[-1].parent / program), "-D", str(folder / "data"), *args]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)

    call("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8")
    options = f"-k {folder} -c listen_addresses=''"
    call("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        call("pg_ctl", "-w", "-m", "immediate", "stop")


if __name__ == "__main__":
    main(tyro.cli(Settings))
