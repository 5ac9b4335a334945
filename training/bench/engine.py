"""Connections of the policy database: SQLite and PostgreSQL, migrations, waits and clear errors."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from lrenv.errors import InputError
from lrenv.files import make_folder
from lrenv.training.bench.tables import Base

T = TypeVar("T")
VERSION_TABLE = "lrenv_schema"
_CONNECT_TIMEOUT = 5
_RETRY_AFTER = 0.05
_MIGRATION_LOCK = 5_172_001
"""Number of PostgreSQL's advisory lock under which one process at a time migrates."""

_LOCKED = ("SQLITE_BUSY", "SQLITE_LOCKED", "55P03", "40P01", "40001")
_FULL = ("SQLITE_FULL", "53100")
_NO_DATABASE = ("SQLITE_NOTADB", "SQLITE_CORRUPT")


def open_engine(place: str | Path, timeout: float) -> tuple[Engine, str]:
    """Make the engine of a database, and the name by which messages call it.

    Args:
        place: Path of an SQLite file, or a URL of PostgreSQL.
        timeout: Longest wait for a lock, in seconds.

    Raises:
        InputError: The URL is none of PostgreSQL, or the file's folder cannot be written.
    """
    path = sqlite_path(place)
    if path is not None:
        return _sqlite(path, timeout), str(path)
    url = _parsed(place)
    backend = url.get_backend_name() if url else "a URL that cannot be read"
    if url is None or backend != "postgresql":
        raise InputError(
            f"Expected a path or postgresql://user@host/name as database, got {backend}; name one."
        )
    return _postgresql(url, timeout), _shown(url)


def sqlite_path(place: str | Path) -> Path | None:
    """The file that a path or a URL of SQLite names; None for other URLs."""
    if "://" not in str(place):
        return Path(place)
    url = _parsed(place)
    local = url is not None and url.get_backend_name() == "sqlite"
    return Path(url.database) if url and local and url.database else None


def _parsed(place: str | Path) -> URL | None:
    try:
        return make_url(str(place))
    except (ArgumentError, ValueError):
        return None


def _shown(url: URL) -> str:
    host = url.host or url.query.get("host") or "localhost"
    return f"postgresql://{host}{f':{url.port}' if url.port else ''}/{url.database or ''}"


def _sqlite(path: Path, timeout: float) -> Engine:
    path = path.expanduser()
    make_folder(path.parent)
    url = URL.create("sqlite", database=str(path))
    engine = create_engine(url, connect_args={"timeout": timeout})

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None  # transactions begin where we say so
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # a reader that starts to write fails at once where another one writes
        write = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _postgresql(url: URL, timeout: float) -> Engine:
    wait = {} if "connect_timeout" in url.query else {"connect_timeout": _CONNECT_TIMEOUT}
    url = url.set(drivername="postgresql+psycopg")
    engine = create_engine(url, connect_args=wait, pool_pre_ping=True)

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, record: object) -> None:
        connection.execute(f"SET lock_timeout = {round(1000 * timeout)}")
        connection.commit()

    return engine


def migrate(engine: Engine, name: str) -> None:
    """Bring the tables to the newest version; nothing is written where they have it.

    Raises:
        InputError: The tables are newer than this lrenv, or another program's.
    """
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    with engine.connect() as connection:
        if _version(connection) == scripts.get_current_head():
            return
    with engine.execution_options(write=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        # Only under the lock do version and tables belong together.
        _check_version(connection, scripts, name)
        if _version(connection) != scripts.get_current_head():
            _upgrade(config, connection)


def _upgrade(config: Any, connection: Connection) -> None:
    from alembic import command

    config.attributes.update(connection=connection, version_table=VERSION_TABLE)
    command.upgrade(config, "head")


def _version(connection: Connection) -> str | None:
    from alembic.migration import MigrationContext

    options = {"version_table": VERSION_TABLE}
    return MigrationContext.configure(connection, opts=options).get_current_revision()


def _check_version(connection: Connection, scripts: Any, name: str) -> None:
    version = _version(connection)
    known = [script.revision for script in scripts.walk_revisions()]
    if version is None and set(inspect(connection).get_table_names()) & set(Base.metadata.tables):
        raise InputError(
            f"Expected a policy database or an empty one, got {name} with tables of another "
            "program; name another one."
        )
    if version is not None and version not in known:
        raise InputError(
            f"Expected a policy database of version {known[0]} or older, got {name} of version "
            f"{version}; install a newer lrenv."
        )


def retried(work: Callable[[], T], timeout: float) -> T:
    """Do work, again while the database is locked, for at most so many seconds."""
    end = time.monotonic() + timeout
    while True:
        try:
            return work()
        except DBAPIError as error:
            if not _code(error).startswith(_LOCKED) or time.monotonic() > end:
                raise
        time.sleep(_RETRY_AFTER)


@contextmanager
def clear_errors(engine: Engine, name: str, timeout: float) -> Iterator[None]:
    """Turn what a database raises into :class:`InputError` of one line, without passwords."""
    try:
        yield
    except DBAPIError as error:
        code = _code(error)
        reason = " ".join(str(error.orig).split())
        for secret in (engine.url.password, engine.url.query.get("password")):
            reason = reason.replace(str(secret), "***") if secret else reason
        if code.startswith(_LOCKED):
            text = (
                f"{name} to be free within {timeout:g} s, got: {reason}; end what keeps it locked"
            )
        elif code.startswith(_FULL):
            text = f"room to write {name}, got: {reason}; free space or name another database"
        elif code.startswith(_NO_DATABASE):
            text = f"an SQLite database at {name}, got: {reason}; name another or restore a copy"
        elif engine.dialect.name == "postgresql" and not code:
            text = f"a PostgreSQL server at {name}, got: {reason}; start it or correct the URL"
        else:
            text = f"the database {name} to work, got: {reason}; see to its state and rights"
        raise InputError(f"Expected {text}.") from None


def _code(error: DBAPIError) -> str:
    """SQLite's name of an error, or PostgreSQL's number; empty where there is no connection."""
    return str(
        getattr(error.orig, "sqlite_errorname", None) or getattr(error.orig, "sqlstate", None) or ""
    )
