"""Trials for tests of the policy database, and a lock of it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from lrenv.training.bench.database import PolicyDatabase, TrialRecord

TRIAL = TrialRecord(
    uid="a-0",
    task="MLP on [digits] é",
    task_key="k0",
    features={"batch_size": 1.5, "model:mlp": 1.0},
    policy_kind="lrbench",
    policy="NSTEP[0.1, 0.5]",
    parameters={"k0": 0.1, "l": [10, 20], "name": "été", "none": None},
    seed=2**63 - 1,
    sweep="first",
    status="done",
    error="",
    steps=100,
    seconds=1.25,
    metrics={"gap": math.inf, "top1": 0.1, "train_loss": -math.inf, "val_loss": 0.3},
    curve={"loss": [2.0, None, math.inf], "lr": [0.5, 0.25, 0.125], "step": [1.0, 2.0, 3.0]},
    environment={"lrenv": "0.1.0", "torch": "2.6"},
    created="2026-01-02T03:04:05+00:00",
)


def trial(uid: str, **changes: object) -> TrialRecord:
    return replace(TRIAL, uid=uid, **changes)


@contextmanager
def held(database: PolicyDatabase) -> Iterator[None]:
    """Keep all writers and migrations waiting."""
    engine = database.engine.execution_options(write=True)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("LOCK TABLE trials IN SHARE MODE")
        yield


def of_task(key: str, features: dict[str, float], *losses: float) -> list[TrialRecord]:
    return [
        trial(
            f"{key}-{i}",
            task=f"task {key}",
            task_key=key,
            features=features,
            policy=f"FIX({i})",
            metrics={"val_loss": loss},
        )
        for i, loss in enumerate(losses)
    ]
