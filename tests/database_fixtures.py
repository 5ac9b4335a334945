"""Empty policy databases on SQLite and PostgreSQL; a plugin of the tests that need them."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from lrenv.training.bench.database import PolicyDatabase


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A PostgreSQL of its own, without a network; the folder of its socket."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("needs PostgreSQL's server in /usr/lib/postgresql: apt-get install postgresql")
    # as root pytest's own folders are closed to the user postgres
    folder = Path(tempfile.mkdtemp(prefix="lrenv-pg-"))
    as_user = []
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]

    def call(program: str, *args: str) -> None:
        command = [*as_user, str(found[-1].parent / program), "-D", str(folder / "data"), *args]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)

    call("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
    options = f"-k {folder} -c listen_addresses='' -c fsync=off"
    call("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
    yield str(folder)
    call("pg_ctl", "-w", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def new_postgresql(server: str) -> Callable[[], str]:
    import psycopg

    numbers = count()

    def make() -> str:
        name = f"t{next(numbers)}"
        with psycopg.connect(host=server, user="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} STRATEGY file_copy")
        return f"postgresql://postgres@/{name}?host={server}"

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def new_place(request, tmp_path) -> Callable[[], str]:
    """Makes places of empty databases."""
    if request.param == "postgresql":
        return request.getfixturevalue("new_postgresql")
    numbers = count()
    return lambda: str(tmp_path / "new" / f"{next(numbers)}.sqlite")


@pytest.fixture
def place(new_place) -> str:
    return new_place()


@pytest.fixture
def database(place) -> Iterator[PolicyDatabase]:
    with PolicyDatabase(place) as database:
        yield database
