"""Servers whose PostgreSQL is behind pgbouncer, which hands few sessions round, transaction by transaction."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from guerdon_server import bootstrap
from guerdon_server.core.ledger.ports import OutcomeUnknown
from guerdon_server.core.ledger.postgres.confirmation import confirmed
from guerdon_server.platform import postgres
from guerdon_server.settings import Settings
from tests.issuing.crowd import crowd
from tests.issuing.desk import Desk, ask, eventually, item, kinds, opened, reason
from tests.issuing.proof import at_rest, proven
from tests.scaling.pgbouncer import PROGRAM, PgBouncer

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer (apt-get install pgbouncer)")


@pytest_asyncio.fixture(loop_scope="session")
async def bouncer(tmp_path: Path, database: str) -> AsyncIterator[PgBouncer]:
    async with PgBouncer(tmp_path, database) as bouncer:
        yield bouncer


@pytest.fixture
def pooled(settings: Settings, bouncer: PgBouncer) -> Settings:
    """Settings of servers behind it."""
    return dataclasses.replace(settings, postgres_dsn=bouncer.dsn, statement_cache_items_max=0)


@pytest_asyncio.fixture(loop_scope="session")
async def desks(pooled: Settings) -> AsyncIterator[tuple[Desk, Desk]]:
    """Two servers: more connections than there are sessions."""
    async with (
        bootstrap.running(pooled) as one,
        bootstrap.running(pooled) as two,
        opened(one.grpc) as first,
        opened(two.grpc) as second,
    ):
        yield first, second


async def test_a_crowd_at_two_servers_is_served_to_the_last_unit(desks: tuple[Desk, Desk], pooled: Settings) -> None:
    first, second = desks
    await first.opens(budgets={"USD/2": 500})
    await first.coupon(stock=200)
    await first.cashback()
    async with crowd(desks) as people:
        await people.more(50)
        assert kinds(await second.batch([item("b-1"), item("b-2", prize_id="cashback", order_cents=1000)])) == [
            "granted",
            "granted",
        ]
        await first.adjusts_stock(-20)
        await eventually(lambda: people.rejected["SOLD_OUT"] > 0)
    assert people.rejected.keys() == {"SOLD_OUT"}
    assert len(people.granted) == 179
    await people.replays_are_the_originals()
    assert reason(await second.rejection(ask(prize_id="cashback", order_cents=10_000))) == "BUDGET_EXHAUSTED"
    await at_rest(pooled)
    await proven(pooled)


async def test_what_the_standby_did_not_confirm_is_heard_through_it(bouncer: PgBouncer) -> None:
    pool = await postgres.create_pool(bouncer.dsn, size_min=1, size_max=1, statement_cache_size=0)
    async with pool.acquire() as connection:
        with pytest.raises(OutcomeUnknown, match="standby"), confirmed(connection):
            await connection.execute("DO $$ BEGIN RAISE WARNING 'not replicated' USING ERRCODE = '01000'; END $$")
    await pool.close()


async def refused(settings: Settings) -> str:
    with pytest.raises(bootstrap.StartRefused) as caught:
        async with bootstrap.running(settings):
            pass
    return str(caught.value)


async def test_sessions_without_what_a_connection_asks_for_are_refused(
    tmp_path: Path, database: str, settings: Settings
) -> None:
    async with PgBouncer(tmp_path, database, connect_query="SET search_path = 'guerdon'; SET jit = off;") as bare:
        said = await refused(dataclasses.replace(settings, postgres_dsn=bare.dsn, statement_cache_items_max=0))
    assert "lack" in said
    assert "SET lock_timeout = '8000';" in said
    assert "SET idle_in_transaction_session_timeout = '60000';" in said
    assert "search_path" not in said


async def test_prepared_statements_that_it_forgets_are_refused(pooled: Settings) -> None:
    assert "statement_cache_items_max = 0" in await refused(dataclasses.replace(pooled, statement_cache_items_max=256))


async def test_a_pooler_that_accepts_no_unknown_parameters_is_refused(
    tmp_path: Path, database: str, settings: Settings
) -> None:
    async with PgBouncer(tmp_path, database, ignore_startup_parameters="extra_float_digits") as strict:
        said = await refused(dataclasses.replace(settings, postgres_dsn=strict.dsn, statement_cache_items_max=0))
    assert "unsupported startup parameter" in said


async def test_migrating_through_it_is_refused(bouncer: PgBouncer) -> None:
    versioned, repeatable = bootstrap.migration_sources()
    with pytest.raises(postgres.MigrationPooledError, match="PostgreSQL itself"):
        await postgres.migrate(bouncer.dsn, versioned=versioned, repeatable=repeatable)
