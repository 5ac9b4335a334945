"""The monitor of running jobs: files in any state, the terminal, the page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tyro

from lrenv.errors import InputError
from lrenv.policies.frozen import FrozenPolicy
from lrenv.training.bench import monitor as module
from lrenv.training.bench.monitor import RunReader, RunState, Tail, monitor, sparkline
from lrenv.training.bench.monitor_page import chart, duration, facts, thinned
from lrenv.training.bench.settings import MonitorSettings
from lrenv.training.cli import main
from lrenv.training.finetune import ProgressLog


def step(n: int, **values: Any) -> dict[str, Any]:
    return {"step": n, "loss": 1.0 / n, "lr": 0.1, "time": 1000.0 + 2.0 * n, **values}


def append(path: Path, *rows: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def guard(n: int, **values: Any) -> dict[str, Any]:
    return {"step": n, "lr": 0.05, "guard": "the loss exploded", "rolled_back": False, **values}


def write_log(folder: Path) -> Path:
    path = folder / "progress.jsonl"
    append(path, {"start": 0, "total_steps": 20, "time": 1000.0})
    append(path, step(1), step(2, decision={"step": 2, "lr": 0.1, "guard": None}))
    append(path, step(3), step(4, val_loss=0.5, decision=guard(4)))
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path)


def test_lines_are_read_when_they_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    tail = Tail(path)
    assert tail.read() == (False, [])
    path.write_text('{"a": 1}\n{"a": 2')
    assert tail.read() == (False, [{"a": 1}])
    assert tail.read() == (False, [])
    path.write_text('{"a": 1}\n{"a": 23}\nno json\n[4]\n\n{"a": 5}')
    assert tail.read() == (False, [{"a": 23}, {"a": 5}])
    path.write_text('{"a": 1}\n{"a": 23}\nno json\n[4]\n\n{"a": 5}\n{"a": 6}\n')
    assert tail.read() == (False, [{"a": 6}])


def test_another_file_voids_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    tail = Tail(path)
    tail.read()
    path.write_text('{"a": 1}\n')
    assert tail.read() == (True, [{"a": 1}])
    path.write_text('{"a": 7}\n{"a": 8}\n')  # longer, but another one
    assert tail.read() == (True, [{"a": 7}, {"a": 8}])
    path.unlink()
    assert tail.read() == (True, [])
    assert tail.read() == (False, [])
    path.write_bytes(b'{"a": "\xff"}\n{"a": 9}\n')
    assert tail.read() == (False, [{"a": 9}])


def test_a_run_by_hand(log: Path) -> None:
    state = RunReader(log.parent).read()
    assert state.losses == {1: 1.0, 2: 0.5, 3: pytest.approx(1 / 3), 4: 0.25}
    assert state.lrs == dict.fromkeys(range(1, 5), 0.1)
    assert state.vals == {4: 0.5}
    assert [entry["step"] for entry in state.decisions] == [2, 4]
    assert [entry["step"] for entry in state.guarded] == [4]
    assert (state.done, state.total, state.pace, state.updated) == (4, 20, 2.0, 1008.0)
    assert state.seconds_left == 32.0
    assert not state.finished

    assert facts(state, 1008.0 + 65.0) == {
        "State": "running, last heard of 1 min 5 s ago",
        "Steps": "4 of 20",
        "Time left": "32 s",
        "Loss": "0.2500 at step 4",
        "Validation loss": "0.5000 at step 4",
        "LR": "0.1",
        "Last decision": "at step 4, LR 0.05, 0.50 times the one before",
        "Guard": "at step 4 the loss exploded, the LR was cut",
    }


def test_a_silent_run_is_called_so(log: Path) -> None:
    state = RunReader(log.parent).read()
    found = facts(state, 1008.0 + 301.0)
    assert found["State"] == "silent, perhaps stopped, last heard of 5 min 1 s ago"
    assert "Time left" not in found
    slow = replace(state, pace=20.0)
    assert facts(slow, 1008.0 + 399.0)["State"].startswith("running")
    assert facts(slow, 1008.0 + 401.0)["State"].startswith("silent")


def test_a_resumed_job_takes_back_what_lies_behind_its_checkpoint(log: Path) -> None:
    reader = RunReader(log.parent)
    reader.read()
    with log.open("a") as file:
        file.write('{"step": 5, "lo')  # killed
    assert reader.read().done == 4
    with ProgressLog(log, 2, 20) as progress:
        state = reader.read()
        assert (state.done, state.pace) == (2, None)
        assert sorted(state.losses) == [1, 2]
        assert [entry["step"] for entry in state.decisions] == [2]
        progress.write(step=3, loss=math.nan, lr=0.2, val_loss=None, decision=None)
    state = reader.read()
    assert (state.done, state.lrs[3]) == (3, 0.2)
    assert sorted(state.losses) == [1, 2]
    assert RunReader(log.parent).read() == state
    assert json.loads(log.read_text().splitlines()[-1])["loss"] is None


def test_a_job_of_ones_own_is_followed_by_its_decisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, now = tmp_path / "decisions.jsonl", [500.0]
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    entries = [{**guard(n), "total_steps": 100, "loss": 4.0 / n} for n in (3, 10, 20)]
    append(log, *entries)
    reader = RunReader(tmp_path)
    state = reader.read()
    assert (state.done, state.total, state.pace, state.updated) == (20, 100, None, 500.0)
    assert state.lrs == {3: 0.05, 10: 0.05, 20: 0.05}
    assert state.losses[20] == 0.2
    assert len(state.guarded) == 3
    now[0] = 530.0
    append(log, {**guard(40), "total_steps": 100})
    state = reader.read()
    assert (state.pace, state.seconds_left) == (1.5, 90.0)
    append(log, {**guard(10), "total_steps": 100})  # resumed
    state = reader.read()
    assert [entry["step"] for entry in state.decisions] == [3, 10]
    assert state.pace is None
    append(log, {"finished": True})
    assert reader.read().finished


def test_a_job_of_ones_own_is_through_at_its_last_step(tmp_path: Path) -> None:
    log = tmp_path / "progress.jsonl"
    append(log, step(1, total_steps=2))
    assert not RunReader(tmp_path).read().finished
    append(log, step(2))
    assert RunReader(tmp_path).read().finished
    append(log, {"start": 1, "total_steps": 2})
    assert not RunReader(tmp_path).read().finished


def finetune(policy: FrozenPolicy, out: Path) -> None:
    card = next(out.parent.glob("**/random-scale-free.json"))
    argv = ["finetune", "--trainee", "mlp-mnist-classic", "--policy", str(card)]
    main([*argv, "--total-steps", "30", "--output", str(out)])


def test_a_finished_run_is_said_to_be(
    policy: FrozenPolicy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    finetune(policy, out)
    capsys.readouterr()
    monitor(MonitorSettings(out, page=True))

    shown = capsys.readouterr().out
    assert re.search(r"State +finished", shown)
    assert "30 of 30" in shown
    assert f"Page: {out / 'monitor.html'}" in shown
    assert "reload" not in (out / "monitor.html").read_text()
    entries = [json.loads(line) for line in (out / "decisions.jsonl").read_text().splitlines()]
    unwatched = {"features", "policy", "policy_sha256"}
    state = RunReader(out).read()
    assert state.decisions == [{k: e[k] for k in e.keys() - unwatched} for e in entries]
    assert sorted(state.losses) == list(range(1, 31))
    assert state.metrics == json.loads((out / "metrics.json").read_text())
    assert state.vals[30] == pytest.approx(state.metrics["val_loss"])

    with ProgressLog(out / "progress.jsonl", 0, 30):  # started anew
        state = RunReader(out).read()
    assert (state.finished, state.decisions, state.metrics) == (False, [], {})
    (out / "progress.jsonl").unlink()  # as an earlier version left it
    state = RunReader(out).read()
    assert state.finished
    assert [entry["step"] for entry in state.decisions] == [entry["step"] for entry in entries]


def test_a_job_is_followed_to_its_end(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, pages = log.parent / "monitor.html", []

    def sleep(seconds: float) -> None:
        assert seconds == 5.0
        pages.append(page.read_text())
        append(log, step(4 + len(pages)) if len(pages) < 3 else {"finished": True})

    monkeypatch.setattr(module.time, "sleep", sleep)
    monitor(MonitorSettings(log.parent, page=True, interval=5.0))

    assert [re.findall(r"<dd>(\d+) of 20", text) for text in pages] == [["4"], ["5"], ["6"]]
    assert all("location.reload(), 5000)" in text for text in pages)
    assert "reload" not in page.read_text()
    assert re.search(r"State +finished", capsys.readouterr().out)


def test_once_shows_the_state_and_ends(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor(MonitorSettings(log.parent, once=True))
    assert "silent, perhaps stopped" in capsys.readouterr().out
    assert not (log.parent / "monitor.html").exists()


def test_a_run_without_a_step_is_waited_for(tmp_path: Path) -> None:
    reader = RunReader(tmp_path)
    assert facts(reader.read(), 0.0) == {
        "State": "waiting for the first step",
        "Steps": "0",
        "Time left": "not known",
        "Guard": "no event",
    }
    (tmp_path / "settings.json").write_text('{"total_steps": 7}')
    assert facts(reader.read(), 0.0)["Steps"] == "0 of 7"
    (tmp_path / "settings.json").write_text('{"total_s')
    assert facts(reader.read(), 0.0)["Steps"] == "0"


def no_folder(path: Path) -> Path:
    return path / "none"


def some_file(path: Path) -> Path:
    (path / "file").touch()
    return path / "file"


def other_folder(path: Path) -> Path:
    (path / "settings.json").write_text('{"expert": "cosine", "total_steps": 3}')
    return path


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (no_folder, "Expected a run folder at .*, got nothing there; name the folder"),
        (some_file, "Expected a run folder at .*, got a file; name the folder"),
        (other_folder, r"Expected progress.jsonl, .* settings of lrenv finetune in .*, got none"),
    ],
)
def test_a_folder_that_is_no_run_is_refused(
    make: Callable[[Path], Path], text: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=text):
        monitor(MonitorSettings(make(tmp_path)))


@pytest.mark.parametrize("interval", [0.0, -1.0, math.nan, math.inf, 1e300])
def test_an_interval_that_cannot_be_waited_for_is_refused(log: Path, interval: float) -> None:
    with pytest.raises(InputError, match="interval above 0 seconds and up to 86400, a day, got"):
        monitor(MonitorSettings(log.parent, interval=interval))


def test_settings_on_the_command_line() -> None:
    given = tyro.cli(MonitorSettings, args=["runs/mine", "--page", "--interval", "0.5"])
    assert given == MonitorSettings(Path("runs/mine"), page=True, interval=0.5)


def test_sparklines_by_hand() -> None:
    assert sparkline([]) == ""
    assert sparkline([5.0, 5.0]) == "▁▁"
    assert sparkline([0.0, 1.0, 7.0]) == "▁▂█"
    assert sparkline([0.0, 2.0, 6.0, 8.0, 7.0, 7.0], 3) == "▁██"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1.0, "0 s"), (59.4, "59 s"), (60.0, "1 min 0 s"), (3725.0, "1 h 2 min"), (9e4, "1 d 1 h")],
)
def test_durations_by_hand(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_charts_by_hand() -> None:
    log = chart("Loss", {0: 4.0, 5: 1.0, 10: 2.0}, 10, "A line.", dots={10: 2.0}, marks=[5])
    assert 'd="M0.00 0.00L50.00 100.00L100.00 50.00"' in log
    assert 'd="M100.00 50.00h0"' in log
    assert 'd="M50.00 0V100"' in log
    assert "<span>4</span><span>2</span><span>1</span>" in log
    assert "Logarithmic axis." in log
    linear = chart("<b>", {0: -1.0, 1: 3.0}, 4, "")
    assert 'd="M0.00 100.00L25.00 0.00"' in linear
    assert "<span>3</span><span>1</span><span>-1</span>" in linear
    assert "&lt;b&gt; by optimizer step, from -1 to 3" in linear
    assert "Logarithmic" not in linear
    assert 'd="M0.00 50.00"' in chart("", {0: 2.0}, 1, "")
    assert chart("Loss", {}, 1, "") == ""
    assert thinned({k: float(k) for k in range(600)})[:2] == [(0.5, 0.5), (2.5, 2.5)]


class Balanced(HTMLParser):
    """Checks that elements close in order, and collects texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str | None] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "path"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_escapes_and_needs_no_network(log: Path) -> None:
    append(log, step(5, decision=guard(5, guard="<i>bad</i>", rolled_back=True, lr="<b>")))
    monitor(MonitorSettings(log.parent, page=True, once=True))
    page = Balanced((log.parent / "monitor.html").read_text())
    assert page.open == []
    assert page.addresses == []
    assert "<i>bad</i>, rolled back" in page.text
    assert "at step 5 <i>bad</i>, back to the last good weights" in page.text
    assert "reload" not in page.text


def test_many_guard_events_are_counted() -> None:
    state = RunState("run", decisions=[guard(n) for n in range(1, 6)])
    words = facts(state, 0.0)["Guard"]
    assert words.startswith("5 events, the last: at step 3 the loss exploded")
    assert words.count("at step") == 3
