"""The policy database on SQLite and PostgreSQL: trials, migrations, many writers, errors."""

import json
import math
import socket
import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from databases import TRIAL, held, of_task, trial
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from lrenv.errors import InputError
from lrenv.training.bench.database import PolicyDatabase, task_features
from lrenv.training.bench.engine import VERSION_TABLE
from lrenv.training.bench.tables import Base, pack, unpack

# One worker of pytest-xdist, hence one server.
pytestmark = pytest.mark.xdist_group("postgresql")
pytest_plugins = ("database_fixtures",)


def test_every_field_comes_back(database):
    assert database.add([TRIAL]) == 1

    assert database.trials(curves=True) == [TRIAL]
    assert database.trials() == [replace(TRIAL, curve={})]


def test_curves_are_kept_to_float32_and_nan_is_none(database):
    database.add([trial("a", curve={"loss": [0.1, math.nan, 1e300]})])

    [found] = database.trials(curves=True)
    assert found.curve == {"loss": [0.10000000149011612, None, math.inf]}


@given(st.lists(st.none() | st.floats(width=32, allow_nan=False), max_size=5))
def test_packed_curves_unpack(column):
    curve = {"a": column, "b": column[::-1]}

    assert unpack(["a", "b"], pack(curve)) == curve
    assert len(pack(curve)) == 2 * 4 * len(column)


def test_a_uid_is_stored_once_and_stays(database):
    first, second = trial("a", seed=1), trial("a", seed=2)

    assert database.add([first, second, trial("b")]) == 2
    assert database.add([second, trial("b"), trial("c")]) == 1
    assert {record.uid: record.seed for record in database.trials()} == {
        "a": 1,
        "b": TRIAL.seed,
        "c": TRIAL.seed,
    }


def test_a_failed_trial_is_replaced_where_that_is_asked_for(database):
    failed, done = trial("a", status="failed", seed=1), trial("b", seed=1)
    database.add([failed, done])

    again = [trial("a", seed=2, curve={"lr": [0.5]}), trial("b", seed=2)]
    assert database.add(again) == 0
    assert database.add(again, over_failed=True) == 1
    assert {r.uid: r for r in database.trials(curves=True)} == {"a": again[0], "b": done}
    assert database.counts()["curves"] == 2


def test_tasks_policies_and_environments_are_stored_once(database):
    database.add(
        [
            trial("a"),
            trial("b", seed=1, curve={}),
            trial("c", parameters={"k0": 0.2}),
            trial("d", task_key="k1", environment={"torch": "2.7"}),
        ]
    )

    expected = {"trials": 4, "tasks": 2, "policies": 2, "environments": 2, "curves": 3}
    assert database.counts() == expected


def test_trials_are_filtered_and_newest_first(database):
    database.add(
        [
            trial("a", created="2026-01-01T00:00:00+00:00"),
            trial("b", created="2026-01-03T00:00:00+00:00", sweep="second"),
            trial("c", created="2026-01-02T00:00:00+00:00", policy="FIX", status="diverged"),
            trial("d", created="2026-01-02T00:00:00+00:00", task="other", task_key="k1"),
        ]
    )

    def found(**filters: object) -> list[str]:
        return [record.uid for record in database.trials(**filters)]

    assert found() == ["b", "c", "d", "a"]
    assert found(limit=2) == ["b", "c"]
    assert found(sweep="first") == ["c", "d", "a"]
    assert found(sweep="first", status="done") == ["d", "a"]
    assert found(task="other") == found(task="k1") == ["d"]
    assert found(policy="FIX") == ["c"]
    assert found(policy="none") == []
    assert database.uids() == {"a", "b", "c", "d"}


def test_names_are_ordered_alike_by_both_engines(database):
    database.add(trial(uid) for uid in ("é", "b", "B", "a_1", "a-1"))

    assert [record.uid for record in database.stream()] == ["B", "a-1", "a_1", "b", "é"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"uid": ""}, "Expected uid of a trial to be text that is not empty, got ''"),
        ({"task": "a\0b"}, "Expected task of a trial to be text"),
        ({"status": "fine"}, "to be one of done, stopped, diverged, failed, got 'fine'"),
        ({"features": {"a": math.nan}}, "Expected features of a trial to be finite numbers"),
        ({"features": {'a"': 1.0}}, "Expected features of a trial to be finite numbers"),
        ({"parameters": {"k0": math.inf}}, "Expected parameters of a trial to be JSON values"),
        ({"seed": 2**63}, "Expected seed of a trial to be a whole number of 64 bits"),
        ({"steps": -1}, "Expected steps of a trial to be a whole number from 0, got -1"),
        ({"metrics": {"top1": "high"}}, "Expected metrics of a trial to be numbers by name"),
        ({"curve": {"a": [1.0], "b": []}}, "Expected curve of a trial to be equally long columns"),
        ({"created": "today"}, "Expected created of a trial to be an ISO time, got 'today'"),
    ],
)
def test_what_cannot_be_stored_is_named(tmp_path, changes, text):
    with PolicyDatabase(tmp_path / "p.sqlite") as database:
        with pytest.raises(InputError, match=text):
            database.add([replace(TRIAL, **changes)])
        assert database.uids() == set()


def test_the_message_of_a_failure_never_stops_a_sweep(database):
    database.add([trial("a", status="failed", error="lost\0 \ud800")])

    assert database.trials()[0].error == "lost ?"


WRITER = """
import sys
from lrenv.training.bench.database import PolicyDatabase
from lrenv.training.bench.trial_record import record_from
import json
fields, first = json.loads(sys.argv[2]), int(sys.argv[3])
uids = [f"u{i:03d}" for i in range(first, first + 50)]
with PolicyDatabase(sys.argv[1]) as database:
    batches = [uids[i : i + 5] for i in range(0, 50, 5)]
    print(sum(database.add(record_from(fields | {"uid": u, "task_key": u[:3], "seed": int(u[1:])})
                           for u in batch) for batch in batches))
"""


def test_eight_writers_that_overlap_lose_nothing(place):
    fields = json.dumps(vars(TRIAL) | {"metrics": {"val_loss": 0.3}, "curve": {"lr": [0.5]}})
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, place, fields, str(25 * i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(8)
    ]
    results = [writer.communicate(timeout=300) for writer in writers]

    assert [error for _, error in results if error] == []
    # 0-49, 25-74 up to 175-224
    assert sum(int(out) for out, _ in results) == 225
    with PolicyDatabase(place) as database:
        assert {r.uid: r.seed for r in database.stream()} == {f"u{i:03d}": i for i in range(225)}
        assert database.counts() == {
            "trials": 225,
            "tasks": 23,
            "policies": 1,
            "environments": 1,
            "curves": 225,
        }


def test_the_migrations_make_the_tables_of_the_code(database):
    options = {
        "version_table": VERSION_TABLE,
        "compare_type": True,
        "include_name": lambda name, kind, parents: name != VERSION_TABLE,
    }
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []


def test_opening_an_up_to_date_database_writes_nothing(database, place):
    database.add([TRIAL])
    with held(database), PolicyDatabase(place, timeout=0.2) as again:
        assert again.uids() == {"a-0"}


def test_a_newer_database_is_refused(database, place):
    with database.engine.execution_options(write=True).begin() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")

    text = "Expected a policy database of version 0001 or older, got .* of version 9999; install"
    with pytest.raises(InputError, match=text):
        PolicyDatabase(place)


def test_tables_of_another_program_are_refused_and_stay(database, place):
    with database.engine.execution_options(write=True).begin() as connection:
        connection.exec_driver_sql(f"DROP TABLE {VERSION_TABLE}")

    with pytest.raises(InputError, match="with tables of another program; name another one"):
        PolicyDatabase(place)


@pytest.mark.parametrize("text", ["no database " * 100, "SQLite format 3\0" + "x" * 2000])
def test_a_file_that_is_no_database_is_refused_and_stays(tmp_path, text):
    path = tmp_path / "notes.sqlite"
    path.write_text(text)

    with pytest.raises(InputError, match=r"Expected an SQLite database at .*notes.sqlite, got: "):
        PolicyDatabase(path)
    assert path.read_text() == text


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="to work, got: unable to open database file"):
        PolicyDatabase(tmp_path)


def test_a_locked_database_is_named_with_the_wait(database, place):
    with (
        PolicyDatabase(place, timeout=0.2) as other,
        held(database),
        pytest.raises(InputError, match=r"to be free within 0.2 s, got: .*lock.*; end what keeps"),
    ):
        other.add([TRIAL])

    assert database.add([TRIAL]) == 1


def test_a_full_disk_is_named_and_the_rest_stays(tmp_path):
    with PolicyDatabase(tmp_path / "p.sqlite") as database:
        database.add([TRIAL])
        database.close()

        @event.listens_for(database.engine, "connect")
        def fill(connection: sqlite3.Connection, record: object) -> None:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages + 2}")

        with pytest.raises(InputError, match=r"room to write .*, got: database or disk is full"):
            database.add(trial(f"b{i}", error="x" * 1000) for i in range(100))
        assert database.uids() == {"a-0"}


def test_an_unreachable_server_is_named_without_the_password():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        url = f"postgresql://me:s3cret@127.0.0.1:{port}/bench?password=s3cret"
        text = (
            f"Expected a PostgreSQL server at postgresql://127.0.0.1:{port}/bench, got: .*refused"
        )
        with pytest.raises(InputError, match=text) as refused:
            PolicyDatabase(url)
    assert "s3cret" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "got"),
    [
        ("mysql://me:s3cret@host/x", "mysql"),
        ("postgresql://me:s3cret@host:port/x", "a URL that cannot be read"),
        ("://", "a URL that cannot be read"),
    ],
)
def test_other_urls_are_refused(url, got):
    with pytest.raises(InputError, match=rf"as database, got {got}; name one\.$"):
        PolicyDatabase(url)


def test_similar_finds_the_best_policies_of_the_nearest_tasks(database):
    database.add(of_task("far", {"a": 5.0, "b": 0.0}, 0.1))
    database.add(of_task("near", {"a": 1.0, "b": 2.5}, 0.5, 0.2, 0.3, math.nan))
    database.add(of_task("middle", {"a": 2.0}, 0.9, 0.7))
    database.add([trial("x", task_key="worse", features={"a": 1.0, "b": 2.0}, status="diverged")])
    database.add(of_task("blank", {"a": 1.0, "b": 2.0}, math.inf))

    found = database.similar({"a": 1.0, "b": 2.0}, n=2)

    assert [item.task_key for item in found] == ["near", "middle"]
    # |1 − 1| + |2.5 − 2|, and |2 − 1| + |0 − 2|
    assert [item.distance for item in found] == [0.5, 3.0]
    best = found[0]
    assert (best.task, best.policy_kind, best.policy, best.uid) == (
        "task near",
        "lrbench",
        "FIX(1)",
        "near-1",
    )
    assert (best.val_loss, best.trials, best.parameters) == (0.2, 4, TRIAL.parameters)
    assert [item.distance for item in database.similar({"b": 0.0})] == [0.0, 0.0, 2.5]
    assert [item.task_key for item in database.similar({"a": 5.0})] == ["far", "middle", "near"]
    with pytest.raises(InputError, match="Expected features of a task, got none"):
        database.similar({})


def test_features_of_a_task(tiny_task):
    expected = {
        "adaptive": 0.0,
        "momentum": 1.0,
        "batch_size": math.log10(8),
        "total_steps": math.log10(40),
        "n_train": math.log10(200),
        # 6 × 8 + 8 and 8 × 3 + 3
        "parameters": math.log10(83),
        "n_classes": math.log10(3),
        "lr_multiplier": 0.0,
        "init_scale": 0.0,
        "label_noise": 0.0,
        "model:mlp": 1.0,
    }
    assert task_features(tiny_task) == pytest.approx(expected)
    adam = replace(tiny_task.spec.optimizer, name="adam")
    other = replace(tiny_task, spec=replace(tiny_task.spec, optimizer=adam, label_noise=0.25))
    assert task_features(other) == pytest.approx(expected | {"adaptive": 3.0, "label_noise": 0.25})
