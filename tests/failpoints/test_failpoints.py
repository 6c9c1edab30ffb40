"""Failpoints as a setting: the grammar, what happens at a point, and that production has none."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import sys

import pytest
import redis.asyncio as aioredis

from guerdon_server import bootstrap
from guerdon_server.platform import postgres, redis
from guerdon_server.platform.config import SettingsError, load
from guerdon_server.platform.failpoints import GRAMMAR, Action, Failpoints, parse
from guerdon_server.platform.postgres_failpoints import name_of
from guerdon_server.settings import Settings
from tests.issuing.desk import ask, opened, outcome
from tests.issuing.proof import at_rest, open_admissions, proven
from tests.running.processes import environment, refused, serving

_ADDRESSES = {"GUERDON_POSTGRES_DSN": "postgresql://x@h/d", "GUERDON_REDIS_URL": "redis://h"}


def test_a_spec_names_points_actions_and_times() -> None:
    kill, delay, error, cancel = parse(
        "postgres.commit_issuances.after=kill@3; redis.gate.admit.before=delay:0.5@2-4 ;postgres.*=error;a.b=cancel"
    )
    assert (kill.point, kill.action, kill.first, kill.last) == ("postgres.commit_issuances.after", Action.KILL, 3, 3)
    assert (delay.action, delay.seconds, delay.first, delay.last) == (Action.DELAY, 0.5, 2, 4)
    assert (error.point, error.action, error.first, error.last) == ("postgres.*", Action.ERROR, 1, None)
    assert cancel.action is Action.CANCEL
    assert [delay.fires("redis.gate.admit.before") for _ in range(5)] == [False, True, True, True, False]
    assert not error.fires("redis.gate.admit.before")
    assert parse("") == []


@pytest.mark.parametrize(
    "spec", ["x", "x=", "x=boom", "x=delay", "x=kill:3", "x=kill@0", "x=kill@3-2", "x=error@a", "=kill", "X y=kill"]
)
def test_a_spec_that_is_none_is_refused_with_the_grammar(spec: str) -> None:
    with pytest.raises(ValueError, match=r"failpoint|ends before") as caught:
        parse(f"a.b=kill;{spec}")
    assert GRAMMAR in str(caught.value)
    with pytest.raises(SettingsError) as told:
        load(Settings, env={**_ADDRESSES, "GUERDON_TEST_MODE": "1", "GUERDON_FAILPOINTS": spec})
    assert GRAMMAR in str(told.value)


@pytest.mark.parametrize(("name", "value"), [("failpoints", "a.b=kill"), ("test_clock_offset_seconds", "-300")])
def test_production_refuses_what_breaks_it(name: str, value: str) -> None:
    variables = {**_ADDRESSES, f"GUERDON_{name.upper()}": value}
    with pytest.raises(SettingsError, match=f"{name} only with test_mode"):
        load(Settings, env=variables)
    load(Settings, env={**variables, "GUERDON_TEST_MODE": "true"})


async def test_a_server_in_production_does_not_start_with_them(settings: Settings) -> None:
    ended = await refused(environment(settings, GUERDON_TEST_MODE="false", GUERDON_FAILPOINTS="a.b=kill"))
    assert ended.status == 2
    assert "failpoints only with test_mode" in ended.told
    for armed in (dataclasses.replace(settings, failpoints="a.b=kill"), settings):
        with pytest.raises(bootstrap.StartRefused, match="test mode"):
            async with bootstrap.running(
                dataclasses.replace(armed, test_mode=False), failpoints=None if armed.failpoints else Failpoints()
            ):
                pass


async def test_without_them_the_drivers_are_not_even_wrapped(settings: Settings) -> None:
    assert type(redis.connect(settings.redis_url)) is aioredis.Redis
    program = (
        "import asyncio, sys\n"
        "from guerdon_server import bootstrap\n"
        "from guerdon_server.settings import Settings\n"
        "async def main():\n"
        "    settings = Settings(postgres_dsn=sys.argv[1], redis_url=sys.argv[2], grpc_port=0, metrics_port=0,"
        " test_mode=True)\n"
        "    async with bootstrap.running(settings):\n"
        "        print(sorted(name for name in sys.modules if name.endswith('_failpoints')))\n"
        "asyncio.run(main())\n"
    )
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, settings.postgres_dsn, settings.redis_url), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await child.communicate()
    assert (child.returncode, out) == (0, b"[]\n")


async def test_a_process_dies_at_the_point_that_its_environment_names(settings: Settings) -> None:
    request = ask()
    async with (
        serving(settings, GUERDON_FAILPOINTS="postgres.commit_issuances.after=kill@2") as process,
        opened(process.grpc) as desk,
    ):
        await desk.opens()
        await desk.coupon(stock=3)
        granted = await desk.grant(ask("first"))
        assert (await outcome(desk.issue(request))).code == "UNAVAILABLE"
        ended = await process.ended()
    assert ended.status == -signal.SIGKILL
    assert "killed at failpoint postgres.commit_issuances.after" in ended.stderr

    async with serving(settings) as process, opened(process.grpc) as desk:
        assert await desk.grant(ask("first"), replayed=True) == granted
        await desk.grant(request, replayed=True)  # the commit had got through
        await at_rest(settings)
    await proven(settings)


async def test_an_error_cuts_the_connection_before_or_after_the_effect(database: str) -> None:
    failpoints = Failpoints()
    pool = await postgres.create_pool(database, size_min=1, size_max=1, failpoints=failpoints)
    insert = "INSERT INTO guerdon.asset (asset) VALUES ($1)"
    count = "SELECT count(*) FROM guerdon.asset WHERE asset = 'X'"
    try:
        for place, made in (("before", 0), ("after", 1)):
            with failpoints.armed(f"postgres.insert.asset.{place}=error@1"), pytest.raises(ConnectionResetError):
                await pool.execute(insert, "X")
            assert await pool.fetchval(count) == made
        backend = await pool.fetchval("SELECT pg_backend_pid()")
        with failpoints.armed("postgres.commit.before=error"), pytest.raises(Exception, match=r"failpoint|released"):
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute(insert, "Y")
        assert await pool.fetchval("SELECT pg_backend_pid()") != backend
        assert not await pool.fetchval("SELECT count(*) FROM guerdon.asset WHERE asset = 'Y'")
    finally:
        pool.terminate()


async def test_a_delay_ends_when_the_connection_is_cut(database: str) -> None:
    failpoints = Failpoints("postgres.now.after=delay:60")
    pool = await postgres.create_pool(database, size_min=1, size_max=1, failpoints=failpoints)
    connection = await pool.acquire()
    reading = asyncio.ensure_future(connection.fetchval("SELECT guerdon.now()"))
    while not failpoints.fired:  # noqa: ASYNC110  bounded by the time-out of the test
        await asyncio.sleep(0.001)
    connection.terminate()
    with pytest.raises(ConnectionResetError):
        await reading
    pool.terminate()


async def test_a_delay_is_no_longer_than_the_driver_waits(redis_url: str) -> None:
    failpoints = Failpoints("redis.ping.before=delay:60")
    client = redis.connect(redis_url, answer_seconds_max=0.05, failpoints=failpoints)
    assert not await redis.is_healthy(client)
    await client.aclose()


async def test_a_cancelled_io_cancels_its_task(database: str) -> None:
    failpoints = Failpoints("postgres.now.before=cancel")
    pool = await postgres.create_pool(database, size_min=1, size_max=1, failpoints=failpoints)
    reading = asyncio.ensure_future(pool.fetchval("SELECT guerdon.now()"))
    await asyncio.wait({reading})
    assert reading.cancelled()
    pool.terminate()


async def test_each_statement_is_seen_once(database: str) -> None:
    failpoints = Failpoints()
    pool = await postgres.create_pool(database, size_min=1, size_max=1, failpoints=failpoints)
    with failpoints.armed("*=delay:0") as (every,):
        async with pool.acquire() as connection, connection.transaction():
            await connection.fetchval("SELECT guerdon.now()")
            await connection.fetchrow("SELECT guerdon.now()")
            await connection.fetch("SELECT guerdon.now()")
            await connection.execute("SELECT guerdon.now()")
        assert every.passes == 2 * 6  # with BEGIN and COMMIT
        with pytest.raises(NotImplementedError, match="no failpoint"):
            async with pool.acquire() as connection:
                await connection.prepare("SELECT 1")
    pool.terminate()


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        ("SELECT * FROM guerdon.commit_issuances($1, $2)", "commit_issuances"),
        ("SELECT guerdon.cancel_request($1, $2)", "cancel_request"),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;", "begin.read_only"),
        ("COMMIT;", "commit"),
        ("UPDATE guerdon.worker SET seen_at = guerdon.now() WHERE incarnation = $1", "update.worker.seen_at"),
        ("SELECT sid FROM guerdon.promotion WHERE promotion_id = $1", "select.promotion.sid.by.promotion_id"),
        ("SELECT sid FROM guerdon.promotion WHERE promotion_id > $1", "select.promotion.sid.after.promotion_id"),
    ],
)
def test_a_name_says_what_a_statement_does(sql: str, name: str) -> None:
    assert name_of(sql) == name
    assert name_of("-- $1 is said here.\n" + sql.replace(" ", "\n   ")) == name


async def test_two_servers_with_clocks_ten_minutes_apart_agree(settings: Settings) -> None:
    """Admission ids are clocks: a request that was fenced by the one whose clock is ahead is granted at the other."""
    ahead, behind = (
        dataclasses.replace(settings, test_clock_offset_seconds=s, commit_seconds_max=0.3) for s in (300, -300)
    )
    failpoints = Failpoints()
    async with (
        bootstrap.running(ahead, failpoints=failpoints) as one,
        bootstrap.running(behind) as two,
        opened(one.grpc) as early,
        opened(two.grpc) as late,
    ):
        await early.opens()
        await early.coupon(stock=5)
        connection = await postgres.connect(settings.postgres_dsn)
        await early.grant(ask("r-early"))
        await late.grant(ask("r-late"))
        ids = await connection.fetch(
            "SELECT admission >> 20 FROM guerdon.request WHERE request_id IN ('r-early', 'r-late') ORDER BY request_id"
        )
        await connection.close()
        assert 590_000 < ids[0][0] - ids[1][0] < 610_000  # ms
        with failpoints.armed("postgres.commit_issuances.before=error"):
            refusal = await outcome(early.issue(ask("r-fenced")))
            assert refusal.code == "ABORTED", refusal
        granted = await late.grant(ask("r-fenced"))
        assert await early.grant(ask("r-fenced"), replayed=True) == granted
        await at_rest(settings)
        assert await open_admissions(settings) == 0
    await proven(settings)
