"""Trials of the policy database in files and other databases, and ``lrenv db``."""

import json
import math
import re

import pyarrow as pa
import pytest
from databases import TRIAL, of_task, trial
from pyarrow import parquet

from lrenv.errors import InputError
from lrenv.training.bench.database import PolicyDatabase
from lrenv.training.bench.db_command import (
    Moved,
    export_database,
    import_database,
    list_trials,
    merge_databases,
    query_policies,
    show_trials,
)
from lrenv.training.bench.exchange import export_trials, import_trials
from lrenv.training.bench.settings import (
    DatabaseExportSettings,
    DatabaseImportSettings,
    DatabaseListSettings,
    DatabaseMergeSettings,
    DatabaseQuerySettings,
    DatabaseShowSettings,
)
from lrenv.training.bench.trials_page import write_trials_page

# One worker of pytest-xdist, hence one server.
pytestmark = pytest.mark.xdist_group("postgresql")
pytest_plugins = ("database_fixtures",)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_export_import_export_is_identical(database, new_place, tmp_path, suffix):
    later = trial("b", created="2026-01-01T00:00:00+00:00", metrics={"val_loss": math.nan})
    database.add([TRIAL, later, trial("c", curve={}, features={}, seconds=None)])
    first, second = tmp_path / f"1{suffix}", tmp_path / f"2{suffix}"

    assert export_trials(database, first) == 3
    with PolicyDatabase(new_place()) as copy:
        assert import_trials(copy, first) == (3, 3)
        assert import_trials(copy, first) == (0, 3)
        assert export_trials(copy, second) == 3
        assert {r.uid: r for r in copy.stream()}["a-0"] == TRIAL
        assert math.isnan({r.uid: r for r in copy.stream()}["b"].metrics["val_loss"])
    assert first.read_bytes() == second.read_bytes()


def test_times_are_kept_in_utc_so_that_the_newest_are_first(database):
    times = {
        "a": "2026-01-01T05:30:00+05:30",
        "b": "2025-12-31T23:00:00-02:00",
        "c": "2026-01-01T00:30:00Z",
        "d": "2026-01-01T00:00:00.5",
    }
    database.add(trial(uid, created=created) for uid, created in times.items())

    assert [(r.uid, r.created) for r in database.trials()] == [
        ("b", "2026-01-01T01:00:00+00:00"),
        ("c", "2026-01-01T00:30:00+00:00"),
        ("d", "2026-01-01T00:00:00.500000+00:00"),
        ("a", "2026-01-01T00:00:00+00:00"),
    ]


def test_an_empty_database_has_empty_exports(tmp_path):
    with PolicyDatabase(tmp_path / "p.sqlite") as database:
        for name in ("empty.jsonl", "empty.parquet"):
            assert export_trials(database, tmp_path / name) == 0
            assert import_trials(database, tmp_path / name) == (0, 0)


def test_a_damaged_line_is_named_and_the_others_are_stored(database, tmp_path):
    path = tmp_path / "trials.jsonl"
    database.add([trial("a"), trial("b"), trial("c")])
    export_trials(database, path)
    lines = path.read_bytes().splitlines()
    lines[0] = lines[0].replace(b'"a"', b'"d"')
    half, odd = lines[1][:100], json.dumps(json.loads(lines[2]) | {"steps": "many"}).encode()
    path.write_bytes(b"\n".join([half, b"", odd, lines[0], b"\xff", b"[1]"]) + b"\n")

    text = (
        r"got damage on 4: 1, 3, 5, 6 \(line 1: .*\); all others are stored, 1 of them new: "
        "mend the damage and import again"
    )
    with pytest.raises(InputError, match=text):
        import_trials(database, path)
    assert database.uids() == {"a", "b", "c", "d"}


def test_a_line_without_a_field_is_named(tmp_path):
    path = tmp_path / "trials.jsonl"
    path.write_text('{"uid": "a"}\n')

    with (
        PolicyDatabase(tmp_path / "p.sqlite") as database,
        pytest.raises(InputError, match=r"line 1: Expected the fields uid, .*; got no field 'cr"),
    ):
        import_trials(database, path)


def test_damaged_parquet_is_named(tmp_path):
    good, bad = tmp_path / "good.parquet", tmp_path / "bad.parquet"
    with PolicyDatabase(tmp_path / "p.sqlite") as database:
        database.add([trial("a"), trial("b")])
        export_trials(database, good)
        table = parquet.read_table(good)
        parameters = pa.array(["{", table["parameters"][1].as_py()])
        place = table.schema.get_field_index("parameters")
        parquet.write_table(table.set_column(place, "parameters", parameters), bad)
        with pytest.raises(InputError, match="got damage on 1: 1 "):
            import_trials(database, bad)

        strange = pa.array([[1.0], [2.0]])
        place = table.schema.get_field_index("features")
        parquet.write_table(table.set_column(place, "features", strange), bad)
        with pytest.raises(InputError, match="got damage on 2: 1, 2 "):
            import_trials(database, bad)

        good.write_bytes(good.read_bytes()[:-20])
        with pytest.raises(InputError, match=r"Expected a Parquet file at .*good.parquet, got: "):
            import_trials(database, good)


@pytest.mark.parametrize("move", [import_trials, export_trials])
def test_other_files_are_refused(tmp_path, move):
    with PolicyDatabase(tmp_path / "p.sqlite") as database:
        with pytest.raises(InputError, match=r"ends in .jsonl or .parquet, got trials.csv; re"):
            move(database, tmp_path / "trials.csv")
        with pytest.raises(InputError, match="got no such file; check the path"):
            import_trials(database, tmp_path / "none.jsonl")


def test_merge_adds_what_is_new(database, new_place, tmp_path):
    with PolicyDatabase(new_place()) as other, PolicyDatabase(tmp_path / "p.sqlite") as third:
        database.add([trial("a", seed=1), trial("b")])
        other.add([trial("a", seed=2), trial("c"), trial("d")])

        assert database.merge(other) == 2
        assert database.merge(other) == database.merge(database) == 0
        assert {r.uid: r.seed == 1 for r in database.trials()} == {
            "a": True,
            "b": False,
            "c": False,
            "d": False,
        }
        assert third.merge(database) == 4
        assert list(third.stream()) == list(database.stream())


def test_commands_list_and_move_trials(place, new_place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LRENV_DATABASE", place)
    path = tmp_path / "out" / "trials.jsonl"
    with PolicyDatabase(place) as database:
        database.add([trial("a"), trial("b", seed=5, status="failed", metrics={})])

    assert [r.uid for r in list_trials(DatabaseListSettings(status="failed"))] == ["b"]
    assert "1 of 2 trials, of 1 tasks and 1 policies" in capsys.readouterr().out
    assert export_database(DatabaseExportSettings(path)) == 2
    copy = new_place()
    moved = import_database(DatabaseImportSettings(path, database=copy))
    assert moved == Moved(trials=2, new=2)
    with PolicyDatabase(copy) as other:
        other.add([trial("c")])
    assert merge_databases(DatabaseMergeSettings(copy)) == Moved(trials=3, new=1)
    assert "3 trials, 1 new" in capsys.readouterr().out


def test_trials_are_shown_on_a_page(place, tmp_path):
    path = tmp_path / "out" / "trials.html"
    settings = DatabaseShowSettings(database=place, output=path)
    with PolicyDatabase(place) as database:
        with pytest.raises(InputError, match=r"Expected trials in .* that fit, got none"):
            show_trials(settings)
        long = "k0_0.1+k1_0.01+lrPolicy_COS+l_40"
        database.add(
            [trial("a", seed=1, policy=long), trial("b", seed=5, policy="<i>", metrics={})]
        )
        database.add([trial("c", curve={"lr": [0.5]})])

    assert show_trials(settings) == path
    text = path.read_text()
    assert "COS 0.1, seed 1" in text
    assert "<td>&lt;i&gt;</td>" in text
    assert "<td>none</td>" in text
    assert "Without learning rates or a finite loss: 1." in text
    assert "validation loss, log scale" in text


def test_losses_below_0_are_drawn_on_a_linear_axis(tmp_path):
    losses = [trial(str(k), metrics={"val_loss": loss}) for k, loss in enumerate((0.5, -0.5))]
    text = write_trials_page(tmp_path / "trials.html", "Trials", losses).read_text()

    assert "highest learning rate, log scale" in text
    assert "validation loss, log scale" not in text
    assert "Without learning rates or a finite loss: 0." in text


def test_each_task_has_its_best_trials_named(tmp_path):
    path = tmp_path / "trials.html"
    losses = {"easy": [0.1 * k for k in range(1, 10)], "hard": [7.0, 5.0, 6.0]}
    trials = [t for key, values in losses.items() for t in of_task(key, {}, *values)]

    text = write_trials_page(path, "Trials", trials).read_text()

    rows = re.findall(r"<tr><td>[^<]*</td><td>([^<]*)</td><td>task (\w+)</td>", text)
    firsts = [("FIX(0)", "easy"), ("FIX(1)", "hard"), ("FIX(1)", "easy"), ("FIX(2)", "hard")]
    assert rows[:4] == firsts
    assert rows[-1] == ("FIX(8)", "easy")
    assert len(rows) == 12
    assert "lowest validation loss of their task" in text


def test_query_finds_a_trainee_like_this_one(place, capsys):
    settings = DatabaseQuerySettings(database=place, trainee="mlp-mnist", total_steps=100)
    with PolicyDatabase(place) as database:
        assert query_policies(settings) == []
        assert "No task has a trial that is done yet" in capsys.readouterr().out
        near = {"adaptive": 3.0, "total_steps": 2.0, "model:mlp": 1.0}
        database.add(of_task("adam", near, 0.4, 0.3) + of_task("sgd", {"total_steps": 2.0}, 0.1))

    found = query_policies(settings)

    # SGD's task is the optimizer's 3 and the model's 1 further away
    assert [(item.task_key, item.policy) for item in found] == [
        ("adam", "FIX(1)"),
        ("sgd", "FIX(0)"),
    ]
    assert found[1].distance - found[0].distance == pytest.approx(4.0)
    assert "FIX(1)" in capsys.readouterr().out


def test_commands_name_what_is_wrong(tmp_path):
    none = str(tmp_path / "none.sqlite")

    with pytest.raises(InputError, match=r"Expected a trainee among .*; got 'cat'"):
        query_policies(DatabaseQuerySettings(trainee="cat", database=none))
    with pytest.raises(InputError, match=r"none.sqlite, got no such file; run a sweep, import"):
        list_trials(DatabaseListSettings(database=none))
    with pytest.raises(InputError, match=r"none.sqlite, got no such file; run a sweep, import"):
        list_trials(DatabaseListSettings(database=f"sqlite:///{none}"))
    text = "Expected a status among done, stopped, diverged, failed, got 'foo'; name one"
    with pytest.raises(InputError, match=text):
        list_trials(DatabaseListSettings(database=none, status="foo"))
    with pytest.raises(InputError, match=text):
        show_trials(DatabaseShowSettings(database=none, status="foo"))
    with pytest.raises(InputError, match="Expected limit of at least 1, got 0"):
        list_trials(DatabaseListSettings(database=none, limit=0))
    with pytest.raises(InputError, match="got no such file"):
        merge_databases(DatabaseMergeSettings(none, database=str(tmp_path / "p.sqlite")))
    assert list(tmp_path.iterdir()) == []
