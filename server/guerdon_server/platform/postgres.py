"""PostgreSQL: connection pools and the migration runner."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partialmethod
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import asyncpg

from guerdon_server.platform.postgres_pool import WatchedPool

if TYPE_CHECKING:
    from guerdon_server.platform.failpoints import Failpoints

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
else:  # asyncpg's own classes cannot be subscripted
    Connection = asyncpg.Connection
    Pool = asyncpg.Pool

SCHEMA = "guerdon"
_MIGRATION_LOCK = 0x6775_6572_646F_6E21  # any fixed number; advisory locks are per database
_LOCK_POLL_SECONDS = 0.1
_IDLE_IN_TRANSACTION_SECONDS_MAX = 60
_QUERIES_PER_CONNECTION_MAX = 100_000_000
_CONNECT_SECONDS_MAX = 10.0
_VERSIONED_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


# --- pools ----------------------------------------------------------------------------------------------------------


async def create_pool(
    dsn: str,
    *,
    size_min: int = 2,
    size_max: int = 10,
    application_name: str = "guerdon",
    statement_timeout_seconds: float | None = None,
    lock_timeout_seconds: float | None = None,
    statement_cache_size: int = 256,
    connect_timeout_seconds: float = _CONNECT_SECONDS_MAX,
    answer_seconds_max: float | None = None,
    failpoints: Failpoints | None = None,
) -> WatchedPool:
    """A pool whose sessions have search_path `guerdon`, UTC and no JIT; close it with `await pool.close()`.

    `statement_timeout_seconds` must stay None for a pool that commits: a commit is never cancelled. With
    `lock_timeout_seconds` it gives up by itself when it waits so long for a lock (55P03: nothing was written). With
    `answer_seconds_max` a connection is cut when an answer takes longer (or than a call's own `timeout`), and the call
    fails as if the server had done it: without it a network that swallows packets, or a server that stands still, would
    keep a caller for ever. Behind a pooler: platform.postgres_pooler, docs/SCALING.md. Sessions are
    not reset on release (that would cost a round trip each time; an open transaction is rolled back all the same): use
    SET LOCAL and transaction-level advisory locks only. With `failpoints` (tests) its I/O passes them. Raises OSError,
    TimeoutError or asyncpg.PostgresError if the server can't be reached.
    """
    connection_class = asyncpg.Connection if answer_seconds_max is None else _impatient(answer_seconds_max)
    watched: dict[str, Any] = {"connection_class": connection_class}
    if failpoints is not None:
        from guerdon_server.platform import postgres_failpoints  # noqa: PLC0415  never loaded in production

        watched = postgres_failpoints.pool_options(failpoints, connection_class, answer_seconds_max)
    pool = WatchedPool(
        dsn,
        min_size=size_min,
        max_size=size_max,
        max_queries=_QUERIES_PER_CONNECTION_MAX,  # the default replaces a busy connection every few seconds
        statement_cache_size=statement_cache_size,
        timeout=connect_timeout_seconds,
        reset=_keep_session,
        server_settings={
            "application_name": application_name,
            **session_settings(
                statement_timeout_seconds=statement_timeout_seconds, lock_timeout_seconds=lock_timeout_seconds
            ),
        },
        **watched,
    )
    await pool
    return pool


def _impatient(answer_seconds_max: float) -> type[Connection]:
    """Connections that end themselves when an answer doesn't come. (A `timeout` of asyncpg's own sends a request to
    cancel, and then waits for its effect: on a server that answers nothing, for ever.)"""

    class Impatient(asyncpg.Connection):
        async def _within(self, method: str, *arguments: Any, timeout: float | None = None, **options: Any) -> Any:
            timer = asyncio.get_running_loop().call_later(timeout or answer_seconds_max, self.terminate)
            try:
                return await getattr(super(), method)(*arguments, **options)
            finally:
                timer.cancel()

    for method in ("fetch", "fetchrow", "fetchval", "execute"):
        setattr(Impatient, method, partialmethod(Impatient._within, method))
    return Impatient


async def connect(dsn: str, *, application_name: str = "guerdon") -> Connection:
    """One connection of its own with the same session settings, for LISTEN, session locks and migrations."""
    return await asyncpg.connect(
        dsn, timeout=_CONNECT_SECONDS_MAX, server_settings={"application_name": application_name, **session_settings()}
    )


def session_settings(
    *, statement_timeout_seconds: float | None = None, lock_timeout_seconds: float | None = None
) -> dict[str, str]:
    """What every session needs, by name, as pg_settings shows it."""
    return {
        "search_path": SCHEMA,
        "TimeZone": "UTC",
        "jit": "off",
        "idle_in_transaction_session_timeout": str(_IDLE_IN_TRANSACTION_SECONDS_MAX * 1000),
        "statement_timeout": str(round((statement_timeout_seconds or 0) * 1000)),
        "lock_timeout": str(round((lock_timeout_seconds or 0) * 1000)),
    }


async def _keep_session(_: Connection) -> None:
    """asyncpg has already rolled back whatever was open."""


def is_unavailable(error: BaseException) -> bool:
    """Whether it says that the server could not be asked, or ended the session: nothing about the question."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in ("08", "25", "53", "57", "58")
    return isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError)


def is_refused(error: BaseException) -> bool:
    """Whether a server or the driver refused to connect: wrong password, no such database, starting up, bad address."""
    return isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError | ValueError)


# --- migrations -----------------------------------------------------------------------------------------------------


class MigrationError(Exception):
    """Base of all refusals; the message says what to do. The database is as it was before the refused step."""


class MigrationDriftError(MigrationError):
    """A file was changed after it had been applied."""


class MigrationHistoryError(MigrationError):
    """The files are no linear history: a gap, a number used twice, a name that does not fit."""


class DatabaseTooNewError(MigrationError):
    """The database was migrated by a newer version of this software."""


class MigrationPooledError(MigrationError):
    """A pooler stands before the database."""


class MigrationFailedError(MigrationError):
    """PostgreSQL refused the SQL of a step."""


class MigrationLockedError(MigrationError):
    """Another process has been migrating for too long."""


@dataclass(frozen=True, slots=True)
class MigrationStep:
    """One file. `version` is None for repeatable ones; `name` is the file's name without `.sql`."""

    kind: Literal["versioned", "repeatable"]
    name: str
    version: int | None
    checksum: str
    sql: str


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What was done, in order, and the version of the schema afterwards."""

    applied: tuple[MigrationStep, ...]
    version: int


async def migrate(
    target: Connection | str,
    *,
    versioned: Traversable,
    repeatable: Sequence[Traversable] = (),
    on_step: Callable[[MigrationStep], None] | None = None,
    lock_wait_seconds_max: float = 300.0,
) -> MigrationReport:
    """Bring the database (a connection outside a transaction, or a DSN) to the version of the code.

    `versioned`: a folder of `NNNN_name.sql`, numbered from 0001 without gaps, each applied once in a transaction of
    its own. `repeatable`: folders of `.sql` files (CREATE OR REPLACE …) with names unique over all folders, applied
    in the order of the folders, then of the names, whenever their text has changed, all in one transaction and after
    the versioned ones. Both run with search_path `guerdon`. Any number of processes may call this at once: they take
    turns.
    `on_step` is called before each step. Raises MigrationError.
    """
    versions, repeats = _versioned_steps(versioned), _repeatable_steps(repeatable)
    applied: list[MigrationStep] = []
    async with _connection(target) as connection, _migration_lock(connection, lock_wait_seconds_max):
        await _create_bookkeeping(connection)
        for step in await _pending_versions(connection, versions):
            await _apply(connection, [step], on_step)
            applied.append(step)
        changed = await _pending_repeats(connection, repeats)
        await _apply(connection, changed, on_step)
        applied.extend(changed)
    return MigrationReport(applied=tuple(applied), version=len(versions))


async def pending(
    target: Connection | str, *, versioned: Traversable, repeatable: Sequence[Traversable] = ()
) -> tuple[MigrationStep, ...]:
    """What `migrate` would do now; changes nothing. Raises MigrationError where `migrate` would refuse."""
    versions, repeats = _versioned_steps(versioned), _repeatable_steps(repeatable)
    async with _connection(target) as connection:
        if await connection.fetchval(f"SELECT to_regclass('{SCHEMA}.schema_repeatable') IS NULL"):
            return (*versions, *repeats)
        return (*await _pending_versions(connection, versions), *await _pending_repeats(connection, repeats))


def _versioned_steps(folder: Traversable) -> list[MigrationStep]:
    steps: list[MigrationStep] = []
    for file in _sql_files(folder):
        match = _VERSIONED_NAME.fullmatch(file.name)
        if match is None:
            raise MigrationHistoryError(f"{file.name} is not named NNNN_name.sql (lower case). Rename it.")
        if int(match[1]) != len(steps) + 1:
            raise MigrationHistoryError(
                f"{file.name} should have number {len(steps) + 1:04}: the history has no gaps and uses no number twice."
                " Renumber what is not released yet, or bring the missing file back."
            )
        steps.append(_step(file, "versioned", int(match[1])))
    return steps


def _repeatable_steps(folders: Iterable[Traversable]) -> list[MigrationStep]:
    steps = [_step(file, "repeatable", None) for folder in folders for file in _sql_files(folder)]
    names = [step.name for step in steps]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MigrationHistoryError(f"{twice[0]}.sql is in two folders. Repeatable files need names of their own.")
    return steps


def _sql_files(folder: Traversable) -> list[Traversable]:
    files = [file for file in folder.iterdir() if file.name.endswith(".sql")]
    return sorted(files, key=lambda file: file.name)


def _step(file: Traversable, kind: Literal["versioned", "repeatable"], version: int | None) -> MigrationStep:
    sql = file.read_text(encoding="utf-8").replace("\r\n", "\n")  # a checkout on another system is no change
    checksum = hashlib.sha256(sql.encode()).hexdigest()
    return MigrationStep(kind=kind, name=file.name.removesuffix(".sql"), version=version, checksum=checksum, sql=sql)


@asynccontextmanager
async def _connection(target: Connection | str) -> AsyncIterator[Connection]:
    if not isinstance(target, str):
        yield target
        return
    connection = await connect(target, application_name="guerdon-migrate")
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def _migration_lock(connection: Connection, wait_seconds_max: float) -> AsyncIterator[None]:
    if await connection.fetchval("SELECT pg_backend_pid()") != connection.get_server_pid():
        raise MigrationPooledError(
            "A pooler (pgbouncer) stands before this database: the lock under which one process migrates at a time"
            " would be taken in a session that belongs to nobody. Run `guerdon migrate` with a postgres_dsn of"
            " PostgreSQL itself."
        )
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_seconds_max
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _MIGRATION_LOCK):
        if loop.time() >= deadline:
            raise MigrationLockedError(
                f"Another process has been migrating this database for more than {wait_seconds_max:g} s."
                " Look for it in pg_stat_activity (application_name guerdon-migrate), then try again."
            )
        await asyncio.sleep(_LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        if not connection.is_closed():
            await connection.execute(f"SELECT pg_advisory_unlock({_MIGRATION_LOCK})")


async def _create_bookkeeping(connection: Connection) -> None:
    if await connection.fetchval(f"SELECT to_regclass('{SCHEMA}.schema_repeatable') IS NOT NULL"):
        return
    async with connection.transaction():
        await connection.execute(f"""
            CREATE SCHEMA IF NOT EXISTS {SCHEMA};
            CREATE TABLE IF NOT EXISTS {SCHEMA}.schema_migration (
                version integer PRIMARY KEY,
                name text NOT NULL,
                checksum text NOT NULL,
                applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
            );
            CREATE TABLE IF NOT EXISTS {SCHEMA}.schema_repeatable (
                name text PRIMARY KEY,
                checksum text NOT NULL,
                applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
            );
        """)


async def _pending_versions(connection: Connection, steps: Sequence[MigrationStep]) -> Sequence[MigrationStep]:
    rows = await connection.fetch(
        f"SELECT version, name, checksum FROM {SCHEMA}.schema_migration ORDER BY version"  # noqa: S608  a constant
    )
    if len(rows) > len(steps):
        raise DatabaseTooNewError(
            f"The database is at version {rows[-1]['version']:04} ({rows[-1]['name']}), this program knows"
            f" {len(steps):04}. Run a newer guerdon-server; a database is never migrated back."
        )
    for position, (row, step) in enumerate(zip(rows, steps, strict=False), start=1):
        if row["version"] != position:
            raise MigrationHistoryError(
                f"guerdon.schema_migration lacks version {position:04}: somebody changed it by hand. Restore its rows."
            )
        if row["checksum"] != step.checksum:
            raise MigrationDriftError(
                f"{step.name}.sql is not what was applied to this database (as {row['name']})."
                " Bring the original file back and put the change into a new migration."
            )
    return steps[len(rows) :]


async def _pending_repeats(connection: Connection, steps: Sequence[MigrationStep]) -> list[MigrationStep]:
    rows = await connection.fetch(f"SELECT name, checksum FROM {SCHEMA}.schema_repeatable")  # noqa: S608  a constant
    applied = {row["name"]: row["checksum"] for row in rows}
    return [step for step in steps if applied.get(step.name) != step.checksum]


async def _apply(
    connection: Connection, steps: Sequence[MigrationStep], on_step: Callable[[MigrationStep], None] | None
) -> None:
    """All steps or none."""
    if not steps:
        return
    async with connection.transaction():
        await connection.execute(f"SET LOCAL search_path TO {SCHEMA}")
        for step in steps:
            if on_step is not None:
                on_step(step)
            try:
                await connection.execute(step.sql)
            except asyncpg.PostgresError as error:
                raise _failed(step, error) from error
            await _remember(connection, step)


async def _remember(connection: Connection, step: MigrationStep) -> None:
    if step.kind == "versioned":
        await connection.execute(
            f"INSERT INTO {SCHEMA}.schema_migration (version, name, checksum) VALUES ($1, $2, $3)",  # noqa: S608
            step.version,
            step.name,
            step.checksum,
        )
        return
    await connection.execute(
        f"""INSERT INTO {SCHEMA}.schema_repeatable AS known (name, checksum) VALUES ($1, $2)
            ON CONFLICT (name) DO UPDATE SET checksum = excluded.checksum, applied_at = clock_timestamp()""",  # noqa: S608
        step.name,
        step.checksum,
    )


def _failed(step: MigrationStep, error: asyncpg.PostgresError) -> MigrationFailedError:
    position = getattr(error, "position", None)
    where = f", line {step.sql[: int(position) - 1].count(chr(10)) + 1}" if position else ""
    return MigrationFailedError(f"{step.name}.sql{where}: {error}. Nothing of this step was kept; mend the file.")
