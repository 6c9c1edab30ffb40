"""PostgreSQL killed under load: every acknowledged grant is there, unknown outcomes are resolved, it serves again."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import AsyncIterator, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

import pytest_asyncio

from guerdon_server import bootstrap
from guerdon_server.platform import postgres
from guerdon_server.platform.engines import PostgresEngine
from guerdon_server.settings import Settings
from tests.issuing.crowd import crowd
from tests.issuing.desk import Desk, Refusal, ask, eventually, fresh, opened, outcome
from tests.issuing.proof import at_rest, proven


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine(short_tmp: Path) -> AsyncIterator[PostgresEngine]:
    """A durable one, to be killed."""
    engine = PostgresEngine(short_tmp / fresh("postgres"), settings={"shared_buffers": "32MB"})
    await engine.start()
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def frail(
    engine: PostgresEngine, redis_url: str, sql_sources: tuple[Traversable, Sequence[Traversable]]
) -> Settings:
    """Settings of servers on it, not in test mode: it must do what a real one does."""
    name = fresh("books").replace("-", "_")
    connection = await postgres.connect(engine.dsn)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    dsn = engine.dsn_for(name)
    await postgres.migrate(dsn, versioned=sql_sources[0], repeatable=sql_sources[1])
    return Settings(
        postgres_dsn=dsn,
        redis_url=redis_url,
        grpc_port=0,
        metrics_port=0,
        postgres_connections_max=6,
        reconcile_interval_ms=50,
        catalogue_poll_ms=100,
        lease_seconds=1,
        admission_age_ms_max=1000,
        commit_seconds_max=2,
    )


@pytest_asyncio.fixture(loop_scope="session")
async def desks(frail: Settings) -> AsyncIterator[tuple[Desk, Desk]]:
    """Two servers on it."""
    async with (
        bootstrap.running(frail) as one,
        bootstrap.running(frail) as two,
        opened(one.grpc) as first,
        opened(two.grpc) as second,
    ):
        await first.opens()
        await first.coupon(stock=100_000)
        yield first, second


async def test_killed_and_restarted_it_has_every_acknowledged_grant(
    frail: Settings, desks: tuple[Desk, Desk], engine: PostgresEngine
) -> None:
    async with crowd(desks) as people:
        for _ in range(2):
            await people.more(100)
            await engine.kill()
            await people.noticed("LEDGER_UNAVAILABLE", "OUTCOME_UNKNOWN")
            await engine.start()
        await people.more(100)

    assert not people.rejected
    assert (await desks[0].stock()).issued_units == len(people.granted)
    await people.replays_are_the_originals()
    await at_rest(frail)
    await proven(frail)


async def test_while_it_is_away_it_is_unavailable_with_a_time_to_retry(
    frail: Settings, desks: tuple[Desk, Desk], engine: PostgresEngine
) -> None:
    request = ask()
    granted = await desks[0].grant(request)
    await engine.kill()
    try:
        calls = (
            desks[0].issue(request),
            desks[1].issue(ask()),
            desks[0].became("r-none"),
            desks[0].became("r-none", cancel=True),
            desks[1].stock(),
            desks[0].adjusts_stock(1),
            desks[0].goes("PAUSED"),
        )
        for call in calls:
            refused = await outcome(call)
            assert isinstance(refused, Refusal)
            assert (refused.code, refused.domain) == ("UNAVAILABLE", "guerdon.dev"), refused
            assert refused.reason in {"LEDGER_UNAVAILABLE", "OUTCOME_UNKNOWN"}
            assert refused.retry_after_ms
    finally:
        await engine.start()

    async def replays() -> bool:
        answer = await outcome(desks[0].issue(request))
        return not isinstance(answer, Refusal) and answer.granted == granted

    await eventually(replays)
    await at_rest(frail)
    await proven(frail)


async def test_frozen_in_the_middle_of_commits_the_outcome_is_found_afterwards(
    frail: Settings, desks: tuple[Desk, Desk], engine: PostgresEngine
) -> None:
    async with crowd(desks, timeout_seconds=1.0) as people:
        await people.more(50)
        backends = await _backends(frail)
        for pid in backends:
            os.kill(pid, signal.SIGSTOP)
        try:
            await people.noticed("DEADLINE_EXCEEDED")
        finally:
            for pid in backends:
                os.kill(pid, signal.SIGCONT)
        await people.more(50)

    assert (await desks[0].stock()).issued_units == len(people.granted)
    await people.replays_are_the_originals()
    await at_rest(frail)
    await proven(frail)


async def test_a_commit_that_is_cut_off_and_gets_through_later_is_found(
    frail: Settings, engine: PostgresEngine
) -> None:
    hasty = dataclasses.replace(frail, commit_seconds_max=0.2, admission_age_ms_max=3_600_000)
    async with bootstrap.running(hasty) as endpoints, opened(endpoints.grpc) as desk:
        await desk.opens()
        await desk.coupon(stock=1000)
        async with crowd([desk]) as people:
            for _ in range(2):
                await people.more(30)
                backends = await _backends(hasty)
                for pid in backends:
                    os.kill(pid, signal.SIGSTOP)
                try:
                    # Where the frozen ones hold locks nothing goes on; where not, other sessions do the work.
                    await people.more_or_noticed(20, "OUTCOME_UNKNOWN", "LEDGER_UNAVAILABLE")
                finally:
                    for pid in backends:
                        os.kill(pid, signal.SIGCONT)
            await people.more(30)
        await at_rest(hasty)  # not by age: whoever lost sight of a commit finds out what became of it

        assert (await desk.stock()).issued_units == len(people.granted)
        await people.replays_are_the_originals()
    await proven(hasty)


async def test_an_absence_longer_than_any_patience_is_resolved_by_itself(
    frail: Settings, engine: PostgresEngine
) -> None:
    patient = dataclasses.replace(frail, admission_age_ms_max=3_600_000)
    async with bootstrap.running(patient) as endpoints, opened(endpoints.grpc) as desk:
        await desk.opens()
        await desk.coupon(stock=1000)
        async with crowd([desk]) as people:
            await people.more(50)
            connection = await postgres.connect(patient.postgres_dsn)
            await connection.execute("BEGIN; LOCK TABLE guerdon.request IN EXCLUSIVE MODE")

            async def commits_wait() -> bool:
                waiting = await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
                return bool(waiting)

            await eventually(commits_wait)
            await engine.kill()
            connection.terminate()
            await people.noticed("OUTCOME_UNKNOWN")
            await engine.start()
            await people.more(50)
        await at_rest(patient)

        assert (await desk.stock()).issued_units == len(people.granted)
        await people.replays_are_the_originals()
    await proven(patient)


async def test_sessions_ended_by_an_operator_cost_nothing(
    frail: Settings, desks: tuple[Desk, Desk], engine: PostgresEngine
) -> None:
    connection = await postgres.connect(frail.postgres_dsn)
    async with crowd(desks) as people:
        for _ in range(5):
            await people.more(30)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        await people.more(30)
    await connection.close()

    assert (await desks[0].stock()).issued_units == len(people.granted)
    await people.replays_are_the_originals()
    await at_rest(frail)
    await proven(frail)


async def _backends(settings: Settings) -> list[int]:
    """The processes that commit for the servers."""
    connection = await postgres.connect(settings.postgres_dsn)
    try:
        rows = await connection.fetch(
            "SELECT pid FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'guerdon-commit'"
        )
    finally:
        await connection.close()
    return [row[0] for row in rows]
