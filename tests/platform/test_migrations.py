"""The migration runner on real databases."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

import asyncpg
import pytest

from guerdon_server.platform import postgres
from guerdon_server.platform.postgres import MigrationReport, MigrationStep

SqlSources = tuple[Traversable, Sequence[Traversable]]


class Sources:
    """Folders of SQL that a test writes."""

    def __init__(self, folder: Path) -> None:
        self.versioned = folder / "versioned"
        self.first = folder / "first"
        self.second = folder / "second"
        for made in (self.versioned, self.first, self.second):
            made.mkdir()

    async def migrate(self, target: postgres.Connection | str, **options: object) -> MigrationReport:
        return await postgres.migrate(
            target,
            versioned=self.versioned,
            repeatable=[self.first, self.second],
            **options,  # type: ignore[arg-type]
        )

    async def pending(self, target: postgres.Connection | str) -> list[str]:
        steps = await postgres.pending(target, versioned=self.versioned, repeatable=[self.first, self.second])
        return names(steps)


def names(steps: tuple[MigrationStep, ...]) -> list[str]:
    return [step.name for step in steps]


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    sources = Sources(tmp_path)
    (sources.versioned / "0001_thing.sql").write_text("CREATE TABLE thing (id int); INSERT INTO thing VALUES (1);")
    (sources.versioned / "0002_more.sql").write_text("ALTER TABLE thing ADD COLUMN more int;")
    (sources.versioned / "README.md").write_text("not SQL")
    (sources.second / "a_count.sql").write_text(
        "CREATE OR REPLACE FUNCTION a_count() RETURNS bigint LANGUAGE sql AS 'SELECT b_one() + count(more) FROM thing';"
    )
    (sources.first / "b_one.sql").write_text(
        "CREATE OR REPLACE FUNCTION b_one() RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint';"
    )
    return sources


async def fetchval(dsn: str, query: str) -> object:
    connection = await postgres.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_everything_is_applied_once_in_order(empty_database: str, sources: Sources) -> None:
    expected = ["0001_thing", "0002_more", "b_one", "a_count"]
    assert await sources.pending(empty_database) == expected
    told: list[str] = []
    report = await sources.migrate(empty_database, on_step=lambda step: told.append(step.name))
    assert names(report.applied) == told == expected
    assert report.version == 2
    assert await fetchval(empty_database, "SELECT guerdon.a_count()") == 1
    assert await sources.pending(empty_database) == []
    assert await sources.migrate(empty_database) == MigrationReport(applied=(), version=2)


async def test_only_what_changed_is_applied_again(empty_database: str, sources: Sources) -> None:
    await sources.migrate(empty_database)
    function = sources.first / "b_one.sql"
    function.write_text(function.read_text().replace("SELECT 1", "SELECT 5"))
    (sources.versioned / "0003_even_more.sql").write_text("INSERT INTO thing VALUES (2, 2);")
    assert await sources.pending(empty_database) == ["0003_even_more", "b_one"]
    report = await sources.migrate(empty_database)
    assert names(report.applied) == ["0003_even_more", "b_one"]
    assert await fetchval(empty_database, "SELECT guerdon.a_count()") == 6


async def test_line_ends_are_no_change(empty_database: str, sources: Sources) -> None:
    (sources.versioned / "0003_lines.sql").write_bytes(b"SELECT 1;\nSELECT 2;\n")
    await sources.migrate(empty_database)
    (sources.versioned / "0003_lines.sql").write_bytes(b"SELECT 1;\r\nSELECT 2;\r\n")
    assert await sources.pending(empty_database) == []


async def test_a_changed_migration_is_refused(empty_database: str, sources: Sources) -> None:
    await sources.migrate(empty_database)
    (sources.versioned / "0001_thing.sql").write_text("CREATE TABLE thing (id bigint);")
    for attempt in (sources.migrate, sources.pending):
        with pytest.raises(postgres.MigrationDriftError, match=r"0001_thing\.sql .* Bring the original file back"):
            await attempt(empty_database)


async def test_a_database_from_the_future_is_refused(empty_database: str, sources: Sources) -> None:
    await sources.migrate(empty_database)
    (sources.versioned / "0002_more.sql").unlink()
    for attempt in (sources.migrate, sources.pending):
        with pytest.raises(postgres.DatabaseTooNewError, match=r"version 0002 .* knows 0001"):
            await attempt(empty_database)


@pytest.mark.parametrize("name", ["0004_gap.sql", "0002_twice.sql", "3_short.sql", "0003-dash.sql", "0003_Upper.sql"])
async def test_a_broken_history_is_refused(empty_database: str, sources: Sources, name: str) -> None:
    (sources.versioned / name).write_text("SELECT 1;")
    with pytest.raises(postgres.MigrationHistoryError):
        await sources.migrate(empty_database)
    assert await fetchval(empty_database, "SELECT to_regnamespace('guerdon')") is None


async def test_two_repeatable_files_of_one_name_are_refused(empty_database: str, sources: Sources) -> None:
    (sources.second / "b_one.sql").write_text("SELECT 1;")
    with pytest.raises(postgres.MigrationHistoryError, match=r"b_one\.sql is in two folders"):
        await sources.migrate(empty_database)


async def test_a_row_removed_by_hand_is_refused(empty_database: str, sources: Sources) -> None:
    await sources.migrate(empty_database)
    await fetchval(empty_database, "DELETE FROM guerdon.schema_migration WHERE version = 1 RETURNING 1")
    with pytest.raises(postgres.MigrationHistoryError, match="lacks version 0001"):
        await sources.migrate(empty_database)


async def test_a_failing_step_leaves_nothing_and_names_its_line(empty_database: str, sources: Sources) -> None:
    broken = sources.versioned / "0003_broken.sql"
    broken.write_text("CREATE TABLE half (id int);\nSELECT 1;\nSELECT nonsense;\n")
    with pytest.raises(postgres.MigrationFailedError, match=r"0003_broken\.sql, line 3: .*nonsense"):
        await sources.migrate(empty_database)
    assert await fetchval(empty_database, "SELECT to_regclass('guerdon.half')") is None
    broken.write_text("CREATE TABLE half (id int);")
    report = await sources.migrate(empty_database)
    assert names(report.applied) == ["0003_broken", "b_one", "a_count"]


async def test_servers_that_start_together_take_turns(empty_database: str, sources: Sources) -> None:
    reports = await asyncio.gather(*(sources.migrate(empty_database) for _ in range(4)))
    assert sorted(len(report.applied) for report in reports) == [0, 0, 0, 4]


async def test_waiting_for_another_migration_has_an_end(empty_database: str, sources: Sources) -> None:
    (sources.versioned / "0003_slow.sql").write_text("SELECT pg_sleep(600);")
    slow = asyncio.create_task(sources.migrate(empty_database))
    async with asyncio.timeout(60):
        while not await fetchval(empty_database, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"):
            assert not slow.done()
    with pytest.raises(postgres.MigrationLockedError, match="pg_stat_activity"):
        await sources.migrate(empty_database, lock_wait_seconds_max=0.0)
    slow.cancel()
    await asyncio.wait([slow])


async def test_a_connection_of_ours_is_used_and_left_usable(empty_database: str, sources: Sources) -> None:
    connection = await postgres.connect(empty_database)
    assert (await sources.migrate(connection)).version == 2
    assert await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
    assert await connection.fetchval("SELECT a_count()") == 1
    await connection.close()


async def test_the_real_migrations_apply_and_are_stable(database: str, sql_sources: SqlSources) -> None:
    # The fixture has applied them; here: nothing is left to do, in a copy as in the original.
    versioned, repeatable = sql_sources
    assert await postgres.pending(database, versioned=versioned, repeatable=repeatable) == ()
    assert (await postgres.migrate(database, versioned=versioned, repeatable=repeatable)).applied == ()


async def test_pool_sessions_see_the_schema_and_keep_no_transaction(pool: postgres.Pool) -> None:
    connection = await pool.acquire()
    assert await connection.fetchval("SHOW search_path") == "guerdon"
    assert await connection.fetchval("SHOW timezone") == "UTC"
    async with connection.transaction():
        await connection.execute("CREATE TEMP TABLE gone (id int)")
    await pool.release(connection)
    assert await pool.fetchval("SELECT count(*) FROM schema_migration") > 0


async def test_a_pool_can_bound_its_statements(database: str) -> None:
    pool = await postgres.create_pool(database, size_min=1, size_max=1, statement_timeout_seconds=0.05)
    with pytest.raises(asyncpg.QueryCanceledError):
        await pool.fetchval("SELECT pg_sleep(600)")
    await pool.close()
