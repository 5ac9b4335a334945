"""The learned LR as hosts' own loggers record it: TensorBoard, CSV, Weights & Biases, MLflow."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import wandb
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_hosts import Module, fit
from test_huggingface import hf_trainer

from lrenv import LearnedLR
from lrenv.huggingface import use_learned_lr


@pytest.fixture
def mlflow_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    folder = (tmp_path / "mlruns").as_uri()
    mlflow.set_tracking_uri(folder)
    yield folder
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri("")


@pytest.fixture
def offline_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield tmp_path
    wandb.finish()


def tensorboard_values(folder: Path, name: str) -> list[float]:
    events = next(folder.rglob("events.out.tfevents.*"))
    reader = EventAccumulator(str(events))
    reader.Reload()
    return [event.value for event in reader.Scalars(name)]


def mlflow_values(folder: str, name: str) -> list[float]:
    client = mlflow.MlflowClient(folder)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    points = client.get_metric_history(runs[0].info.run_id, name)
    return [point.value for point in sorted(points, key=lambda point: point.step)]


def lrs(scheduler: LearnedLR) -> list[float]:
    """The LR of each step of the run."""
    found: list[float] = scheduler.controller.observer.window.lr[0].tolist()
    return found


def test_the_trainer_logs_the_learned_lr(
    tmp_path: Path, mlflow_folder: str, offline_wandb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    trainer = hf_trainer(tmp_path, report_to=["tensorboard", "wandb", "mlflow"])
    use_learned_lr(trainer)
    trainer.train()

    name = "learning_rate"
    logged = [row[name] for row in trainer.state.log_history if name in row]
    assert logged == pytest.approx(lrs(trainer.lr_scheduler), rel=1e-4)
    assert len(set(logged)) > 5
    board = tensorboard_values(tmp_path / "tensorboard", f"train/{name}")
    assert board == pytest.approx(logged, rel=1e-4)
    assert mlflow_values(mlflow_folder, name) == pytest.approx(logged, rel=1e-4)
    assert wandb.run is not None
    assert wandb.run.summary[f"train/{name}"] == pytest.approx(logged[-1], rel=1e-4)


def test_lightning_logs_the_learned_lr(
    tmp_path: Path, mlflow_folder: str, offline_wandb: Path
) -> None:
    table = CSVLogger(tmp_path, "csv")
    board = TensorBoardLogger(tmp_path, "tensorboard")
    loggers = [
        table,
        board,
        WandbLogger(save_dir=tmp_path),
        MLFlowLogger("runs", None, mlflow_folder),
    ]
    module = Module()
    monitor = LearningRateMonitor("step")
    fit(module, tmp_path, logger=loggers, log_every_n_steps=1, callbacks=[monitor])

    chosen = lrs(module.scheduler)
    rows = csv.DictReader((Path(table.log_dir) / "metrics.csv").read_text().splitlines())
    logged = [float(row["lr-AdamW"]) for row in rows if row["lr-AdamW"]]
    assert logged == pytest.approx(chosen, rel=1e-4)
    assert tensorboard_values(Path(board.log_dir), "lr-AdamW") == pytest.approx(chosen, rel=1e-4)
    assert mlflow_values(mlflow_folder, "lr-AdamW") == pytest.approx(chosen, rel=1e-4)
    assert wandb.run is not None
    assert wandb.run.summary["lr-AdamW"] == pytest.approx(chosen[-1], rel=1e-4)
