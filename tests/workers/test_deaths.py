"""A worker that dies: nothing acknowledged is lost, what it held is free at once, another one takes its place."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

from guerdon_server.platform import postgres
from guerdon_server.platform.supervision import Backoff
from guerdon_server.settings import Settings
from tests.issuing.crowd import crowd
from tests.issuing.desk import Desk, ask, eventually, outcome
from tests.issuing.proof import at_rest, open_admissions, proven
from tests.workers.fleet import Fleet, channel, fleet, kill

_LONG = {"GUERDON_LEASE_SECONDS": "300"}  # nothing here waits for it
_OUTCOMES = "guerdon_outcomes_total"
_ENDS = "guerdon_worker_ends_total"


async def test_no_acknowledged_grant_is_lost_and_sums_never_shrink(settings: Settings) -> None:
    async with AsyncExitStack() as stack:
        some = await stack.enter_async_context(fleet(settings, 2, **_LONG))
        desks = [Desk(await stack.enter_async_context(channel(some.grpc))) for _ in range(12)]
        await desks[0].opens()
        await desks[0].coupon(stock=100_000)
        async with crowd(desks) as people:
            for round_ in range(2):
                await people.more(40)
                counted = await asyncio.to_thread(_granted, some)
                kill(some.workers()[0])
                await some.heard("a worker ended", round_ + 1)
                assert await asyncio.to_thread(_granted, some) >= counted
                await some.heard("a worker serves", 3 + round_)
            await people.more(40)
        await people.replays_are_the_originals()
        await at_rest(settings)
        some.signal(signal.SIGTERM)
        assert await some.ended() == 0, some.raw
    await proven(settings)


def _granted(some: Fleet) -> float:
    return some.scraped()[_OUTCOMES, frozenset({("outcome", "granted")})]


async def test_what_the_dead_held_is_free_before_its_lease_ends(settings: Settings) -> None:
    """Also where the dead one was the one that sweeps, and while PostgreSQL still works on its commits."""
    async with AsyncExitStack() as stack:
        some = await stack.enter_async_context(fleet(settings, 2, **_LONG))
        desks = [Desk(await stack.enter_async_context(channel(some.grpc))) for _ in range(12)]
        await desks[0].opens()
        await desks[0].coupon(stock=40)
        await asyncio.gather(*(desk.grant(ask()) for desk in desks))
        connection = await postgres.connect(settings.postgres_dsn)
        await connection.execute("BEGIN; LOCK TABLE guerdon.request IN EXCLUSIVE MODE")
        calls = [asyncio.create_task(outcome(desk.issue(ask(f"held-{n}")))) for n, desk in enumerate(desks)]

        async def in_flight() -> bool:
            return await open_admissions(settings) == len(desks)

        await eventually(in_flight)
        sweeping = await connection.fetchrow(
            "SELECT pid, incarnation FROM guerdon.lease JOIN guerdon.worker ON worker = incarnation"
            " WHERE job = 'sweep' AND expires_at > clock_timestamp()"
        )
        assert sweeping is not None
        kill(sweeping["pid"])
        await some.heard("a worker ended")
        await connection.execute("ROLLBACK")
        answers = await asyncio.gather(*calls)
        killed = [answer for answer in answers if getattr(answer, "code", "") == "UNAVAILABLE"]
        assert 0 < len(killed) < len(desks), answers
        await at_rest(settings)

        (event,) = some.events("a worker is gone")
        assert event["incarnation"] == sweeping["incarnation"]
        stopped = await connection.fetchval(
            "SELECT stopped_at < seen_at + interval '300 seconds' FROM guerdon.worker WHERE incarnation = $1",
            sweeping["incarnation"],
        )
        assert stopped
        results = [await desk.issue(ask(f"held-{n}")) for n, desk in enumerate(desks)]
        assert all(answer.HasField("granted") for answer in results)
        await connection.close()
        assert (await desks[0].stock()).remaining_units == 40 - 2 * len(desks)
    await proven(settings)


async def test_a_crash_loop_backs_off_and_says_why(settings: Settings) -> None:
    # Each worker dies at its third beat, when it has served for a while.
    async with fleet(settings, 2, GUERDON_FAILPOINTS="postgres.update.worker.seen_at.before=kill@3") as some:
        ends = await some.heard("a worker ended", 3)
        while all(event["in_a_row"] != 3 for event in ends):
            ends = await some.heard("a worker ended", len(ends) + 1)
        some.signal(signal.SIGTERM)
        assert await some.ended() == 0, some.raw
    waits = [event["wait_seconds"] for event in some.events("a worker ended") if event["slot"] == 0]
    backoff = Backoff()
    assert waits == [backoff.seconds(n + 1) for n in range(len(waits))]
    assert {event["end"] for event in some.events("a worker ended")} == {"killed by SIGKILL"}


def test_the_wait_doubles_up_to_a_limit() -> None:
    backoff = Backoff(first_seconds=0.5, seconds_max=30.0)
    assert [backoff.seconds(n) for n in range(1, 10)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.seconds(10_000) == 30


async def test_what_would_refuse_a_first_start_is_waited_out_later(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "guerdon.toml"
    file.write_text('log_level = "info"\n')
    async with AsyncExitStack() as stack:
        some = await stack.enter_async_context(fleet(settings, 2, GUERDON_CONFIG=str(file)))
        desk = Desk(await stack.enter_async_context(channel(some.grpc)))
        await desk.opens()
        await desk.coupon()
        file.write_text('log_level = "loud"\n')
        kill(some.workers()[0])
        ends = await some.heard("a worker ended", 3)
        assert ends[0]["end"] == "killed by SIGKILL"
        assert all(str(event["end"]).startswith("refused to start: ") for event in ends[1:])
        assert all("log_level" in str(event["end"]) for event in ends[1:])
        async with channel(some.grpc) as other:  # whoever of the two had the first one's connection
            await Desk(other).grant(ask())

        file.write_text('log_level = "info"\n')
        await some.heard("a worker serves", 3)
        assert len(some.workers()) == 2
        merged = await asyncio.to_thread(some.scraped)
        ended = {dict(labels)["how"]: value for (name, labels), value in merged.items() if name == _ENDS}
        assert ended["died"] == 1
        assert ended["refused"] >= 2
