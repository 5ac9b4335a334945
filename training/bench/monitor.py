"""``lrenv monitor``: follow a job by the files in its run folder, in the terminal and on a page.

The job may be killed and go on from a checkpoint at any time: a start, or a step that was there
before, takes back what lies behind it.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lrenv.errors import InputError
from lrenv.training.bench.monitor_page import facts, write_page
from lrenv.training.bench.settings import MonitorSettings
from lrenv.training.progress import PROGRESS, console
from lrenv.training.report_page import number

DECISIONS = "decisions.jsonl"
SETTINGS, METRICS = "settings.json", "metrics.json"
PAGE = "monitor.html"

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 48  # of a line of bars, in characters
_TAIL = 256  # bytes by which a file is known again
_PACE_STEPS = 200
_DAY = 86_400


def monitor(settings: MonitorSettings) -> None:
    """Show a run until it is finished, or once.

    Raises:
        InputError: The folder is no run's, or the interval is not positive or over a day.
    """
    if not 0.0 < settings.interval <= _DAY:
        raise InputError(
            f"Expected an interval above 0 seconds and up to {_DAY}, a day, got "
            f"{settings.interval}; name another."
        )
    reader = RunReader(settings.run)
    state = _look(reader, settings)
    if settings.page:
        console.print(f"Page: {(settings.run / PAGE).resolve()}", soft_wrap=True)
    if settings.once:
        console.print(view(state))
        return
    with Live(view(state), console=console) as live:
        while not state.finished:
            time.sleep(settings.interval)
            state = _look(reader, settings)
            live.update(view(state))


def _look(reader: RunReader, settings: MonitorSettings) -> RunState:
    state = reader.read()
    if settings.page:
        refresh = None if state.finished or settings.once else max(1.0, settings.interval)
        write_page(settings.run / PAGE, state, facts(state, time.time()), refresh)
    return state


@dataclass(frozen=True)
class RunState:
    """What is known of a run.

    Attributes:
        name: Name of its folder.
        losses: Training loss by optimizer step; steps count from 1.
        lrs: LR behind an optimizer step.
        vals: Validation loss by optimizer step.
        decisions: Entries of the decision log.
        done: Optimizer steps behind the run.
        total: Its length in optimizer steps, None if not known.
        pace: Seconds a step of late, None if not known.
        updated: When a file last changed, in seconds of the clock.
        finished: Whether the job is through.
        metrics: Final metrics of a finished run.
    """

    name: str
    losses: Mapping[int, float] = field(default_factory=dict)
    lrs: Mapping[int, float] = field(default_factory=dict)
    vals: Mapping[int, float] = field(default_factory=dict)
    decisions: Sequence[Mapping[str, Any]] = ()
    done: int = 0
    total: int | None = None
    pace: float | None = None
    updated: float | None = None
    finished: bool = False
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def guarded(self) -> list[Mapping[str, Any]]:
        """Decisions that the guard replaced."""
        return [entry for entry in self.decisions if entry.get("guard")]

    @property
    def seconds_left(self) -> float | None:
        """Time until the last optimizer step, in seconds; None if not known."""
        if self.total is None or self.pace is None:
            return None
        return max(0, self.total - self.done) * self.pace


class Tail:
    """Reads the lines that a file of JSON lines gains, and notices when it is another one.

    A last line that is not whole yet is read when it is. Lines that are no objects are left out.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._offset, self._before = path, 0, b""

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Return whether all earlier lines are void, and the objects of the new ones."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset - len(self._before))
                void = file.read(len(self._before)) != self._before
                if void:
                    self._offset, self._before = 0, b""
                file.seek(self._offset)
                data = file.read()
        except OSError:
            void, data = self._offset > 0, b""
            self._offset, self._before = 0, b""
        whole = data[: data.rfind(b"\n") + 1]
        if _parsed(data[len(whole) :]) is not None:  # files may end without a line break
            whole = data
        self._offset += len(whole)
        self._before = (self._before + whole)[-_TAIL:]
        rows = [row for line in whole.splitlines() if (row := _parsed(line)) is not None]
        return void, rows


class RunReader:
    """Keeps up with the files of a run.

    Args:
        folder: The run folder; its files need not be there yet.

    Raises:
        InputError: It is no folder, or one of something else.
    """

    def __init__(self, folder: Path) -> None:
        _check(folder)
        self._folder = folder
        self._logs = [_Log(folder / PROGRESS), _Log(folder / DECISIONS)]

    def read(self) -> RunState:
        """Read what is new, and say how the run stands."""
        now = time.time()
        for log in self._logs:
            log.read(now)
        progress, log_of_decisions = self._logs
        log = progress if progress.rows or progress.started else log_of_decisions
        settings, metrics = (_read_object(self._folder / name) for name in (SETTINGS, METRICS))
        finished = log.finished
        if not log.started:  # by an earlier lrenv finetune, or a job of the user's own
            through = log.total is not None and log.done >= log.total
            finished |= through or (bool(metrics) and is_finetune(settings))
        own = [row["decision"] for row in progress.rows if isinstance(row.get("decision"), dict)]
        return RunState(
            self._folder.resolve().name,
            losses=log.column("loss"),
            lrs=log.column("lr"),
            vals=log.column("val_loss"),
            # A job of lrenv finetune logs its own; its other log is then one of an earlier start.
            decisions=own if own or log.started else log_of_decisions.rows,
            done=log.done,
            total=log.total or _count(settings.get("total_steps")),
            pace=log.pace,
            updated=log.updated,
            finished=finished,
            metrics=metrics if finished else {},
        )


class _Log:
    """The lines of a file that count: one a step, in order."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
        self._clear()

    def _clear(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.started = self.finished = False
        self.done = 0
        self.total: int | None = None
        self.updated: float | None = None
        self._clock: deque[tuple[int, float]] = deque(maxlen=_PACE_STEPS)

    @property
    def pace(self) -> float | None:
        """Seconds a step of late, None if not known."""
        if not self._clock:
            return None
        (first, began), (last, now) = self._clock[0], self._clock[-1]
        return (now - began) / (last - first) if last > first else None

    def column(self, name: str) -> dict[int, float]:
        """The numbers of that name, by step."""
        return {row["step"]: x for row in self.rows if (x := number(row.get(name))) is not None}

    def read(self, now: float) -> None:
        """Take in the new lines; ``now`` stands for the time of lines without one."""
        void, rows = self._tail.read()
        if void:
            self._clear()
        for row in rows:
            self._take(row)
        if rows:
            self.updated = number(rows[-1].get("time")) or now
            if number(rows[-1].get("time")) is None:
                self._clock.append((self.done, now))

    def _take(self, row: dict[str, Any]) -> None:
        start, step = _count(row.get("start")), _count(row.get("step"))
        self.total = _count(row.get("total_steps")) or self.total
        self.finished = row.get("finished") is True
        behind = start if start is not None else None if step is None else step - 1
        if behind is None:
            return
        if start is not None or behind < self.done:
            self._clock.clear()
        while self.rows and self.rows[-1]["step"] > behind:
            self.rows.pop()
        if start is not None:
            self.started = True
        else:
            self.rows.append(row)
        self.done = behind if step is None else step
        if (at := number(row.get("time"))) is not None:
            self._clock.append((self.done, at))


def _check(folder: Path) -> None:
    cure = "name the folder that --output named, once the job has begun."
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing there"
        raise InputError(f"Expected a run folder at {folder}, got {got}; {cure}")
    found = {path.name for path in folder.iterdir()} - {PAGE}
    if not found or found & {PROGRESS, DECISIONS}:
        return
    if not is_finetune(_read_object(folder / SETTINGS)):
        raise InputError(
            f"Expected {PROGRESS}, {DECISIONS} or the settings of lrenv finetune in {folder}, got "
            f"none of them; {cure}"
        )


def is_finetune(settings: object) -> bool:
    """Whether settings are those of a run of ``lrenv finetune``."""
    return isinstance(settings, dict) and settings.keys() >= {"trainee", "policy", "total_steps"}


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_bytes()) or {}
    except OSError:
        return {}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def sparkline(values: Sequence[float], width: int = _WIDTH) -> str:
    """Draw values as bars between their least and greatest, means where there are too many."""
    if not values:
        return ""
    n = min(width, len(values))
    parts = [values[len(values) * i // n : len(values) * (i + 1) // n] for i in range(n)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def view(state: RunState) -> Group:
    """The state for the terminal."""
    table = Table.grid(padding=(0, 2))
    share = state.done / state.total if state.total else 0.0
    drawn: dict[str, Text | ProgressBar] = {
        "Steps": ProgressBar(total=1.0, completed=share, width=_WIDTH),
        "Loss": _bars(list(state.losses.values())),
        "LR": _bars([math.log(lr) for lr in state.lrs.values() if lr > 0.0]),
    }
    for name, words in facts(state, time.time()).items():
        table.add_row(Text(name, "dim"), Text(words))
        if name in drawn:
            table.add_row("", drawn[name])
    return Group(Text(state.name, "bold"), table)


def _bars(values: Sequence[float]) -> Text:
    return Text(sparkline(values), "cyan")
