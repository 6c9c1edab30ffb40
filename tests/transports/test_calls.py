"""What a caller may rely on, whatever carries its calls: deadlines, cancellation, connections, the end of a server."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from guerdon.v1 import prize_pb2_grpc
from guerdon_server import bootstrap
from guerdon_server.platform import postgres
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, Refusal, ask, eventually, fresh, opened, outcome
from tests.issuing.proof import at_rest, open_admissions, proven
from tests.running.test_process import scraped
from tests.transports import frames, on_both_transports
from tests.transports.elsewhere import elsewhere
from tests.transports.frames import Wire

pytestmark = on_both_transports


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Without what refuses because of a slow machine, or of commits that stand still."""
    return dataclasses.replace(settings, backlog_seconds_max=600, queue_ms_max=60_000)


async def stocked(desk: Desk) -> None:
    """A coupon to issue, and a first grant: later ones meet warm caches."""
    await desk.opens()
    await desk.coupon(stock=100_000)
    await desk.grant(ask())


@asynccontextmanager
async def commits_stand_still(settings: Settings) -> AsyncIterator[None]:
    """Whatever is admitted inside the block is in flight until its end."""
    connection = await postgres.connect(settings.postgres_dsn)
    await connection.execute("BEGIN; LOCK TABLE guerdon.request IN EXCLUSIVE MODE")
    try:
        yield
    finally:
        await connection.execute("ROLLBACK")
        await connection.close()


async def admitted(settings: Settings, number: int) -> None:
    """Waits until so many admissions are open."""

    async def are_open() -> bool:
        return await open_admissions(settings) == number

    await eventually(are_open)


async def figure(endpoints: bootstrap.Endpoints, name: str, **labels: str) -> float:
    """Sum of the samples of a metric that have these labels."""
    samples = (await asyncio.to_thread(scraped, endpoints.metrics))[name]
    return sum(value for has, value in samples if labels.items() <= has.items())


async def none_in_flight(endpoints: bootstrap.Endpoints) -> None:
    """Waits until the server has forgotten every call."""

    async def idle() -> bool:
        return await figure(endpoints, "guerdon_calls_in_flight") == 0

    await eventually(idle)


async def test_a_deadline_that_passes_in_the_middle_ends_the_call_and_leaves_no_trace_of_it(
    settings: Settings, endpoints: bootstrap.Endpoints
) -> None:
    async with opened(endpoints.grpc) as desk:
        await stocked(desk)
        async with commits_stand_still(settings):
            late = await outcome(desk.issue(ask("late"), timeout=0.5))
            assert isinstance(late, Refusal)
            assert late.code == "DEADLINE_EXCEEDED"
            await none_in_flight(endpoints)
        await at_rest(settings)
        became = (await desk.became("late")).WhichOneof("state")
        again = await desk.issue(ask("late"))
        assert again.replayed is (became == "granted")
        assert (await desk.stock()).issued_units == 2
    await proven(settings)


async def test_a_call_that_is_cancelled_is_forgotten_and_its_commit_is_not(
    settings: Settings, endpoints: bootstrap.Endpoints
) -> None:
    async with opened(endpoints.grpc) as desk:
        await stocked(desk)
        async with commits_stand_still(settings):
            calls = [asyncio.ensure_future(desk.issue(ask(f"left-{number}"))) for number in range(20)]
            await admitted(settings, 20)
            for call in calls:
                call.cancel()
            await none_in_flight(endpoints)
        assert await figure(endpoints, "grpc_server_handled", grpc_code="CANCELLED", grpc_method="IssuePrize") == 20
        await at_rest(settings)
        issued = (await desk.stock()).issued_units
        again = [await desk.issue(ask(f"left-{number}")) for number in range(20)]
        assert sum(answer.replayed for answer in again) == issued - 1
        assert (await desk.stock()).issued_units == 21
    await proven(settings)


async def test_clients_that_vanish_in_the_middle_of_a_call_leave_nothing_open(
    settings: Settings, endpoints: bootstrap.Endpoints
) -> None:
    async with opened(endpoints.grpc) as desk:
        await stocked(desk)
        async with commits_stand_still(settings):
            for client in range(5):
                async with Wire(endpoints.grpc) as wire:
                    for number in range(10):
                        message = ask(f"gone-{client}-{number}").SerializeToString()
                        wire.send(frames.call(endpoints.grpc, 2 * number + 1, message))
                    await admitted(settings, 10 * (client + 1))
            await none_in_flight(endpoints)
        assert await figure(endpoints, "grpc_server_handled", grpc_code="CANCELLED", grpc_method="IssuePrize") == 50
        await at_rest(settings)
        again = [await desk.issue(ask(f"gone-{client}-{number}")) for client in range(5) for number in range(10)]
        assert all(answer.HasField("granted") for answer in again)
        assert (await desk.stock()).issued_units == 51
    await proven(settings)


def test_calls_whose_deadline_passed_before_they_were_looked_at_do_nothing(settings: Settings) -> None:
    """While the server's loop stands still; the deadlines pass where the calls wait."""
    with elsewhere(settings) as (endpoints, loop):
        target = endpoints.grpc
        before = asyncio.run(_prepared(target))
        with grpc.insecure_channel(target) as channel:
            service = prize_pb2_grpc.PrizeServiceStub(channel)
            loop.call_soon_threadsafe(time.sleep, 0.8)
            calls = [service.IssuePrize.future(ask(f"late-{number}"), timeout=0.2) for number in range(100)]
            for call in calls:
                error = call.exception()
                assert isinstance(error, grpc.Call)
                assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert asyncio.run(_issued(target)) == before
        asyncio.run(none_in_flight(endpoints))


async def _prepared(target: str) -> int:
    async with opened(target) as desk:
        await stocked(desk)
        return (await desk.stock()).issued_units


async def _issued(target: str) -> int:
    async with opened(target) as desk:
        await asyncio.gather(*(desk.grant(ask()) for _ in range(10)))  # behind whatever the late ones did
        return (await desk.stock()).issued_units - 10


async def test_a_thousand_connections_are_served(settings: Settings, endpoints: bootstrap.Endpoints) -> None:
    async with opened(endpoints.grpc) as desk:
        await stocked(desk)
        channels = [
            grpc.aio.insecure_channel(endpoints.grpc, options=(("grpc.use_local_subchannel_pool", 1),))
            for _ in range(1000)
        ]
        for first in range(0, 1000, 25):  # all stay open; more at once would be an overload
            some = channels[first : first + 25]
            answers = await asyncio.gather(*(Desk(channel).issue(ask(), timeout=None) for channel in some))
            assert all(answer.HasField("granted") for answer in answers)
        await asyncio.gather(*(channel.close() for channel in channels))
        assert (await desk.stock()).issued_units == 1001
    await none_in_flight(endpoints)
    await proven(settings)


async def test_streams_beyond_the_limit_are_refused_unseen_and_the_others_served(settings: Settings) -> None:
    few = dataclasses.replace(settings, calls_per_connection_max=16)
    async with bootstrap.running(few) as endpoints, opened(endpoints.grpc) as desk:
        await stocked(desk)
        message = ask("once").SerializeToString()
        await desk.issue(ask("once"))
        async with Wire(endpoints.grpc) as wire:
            wire.send(b"".join(frames.call(endpoints.grpc, 2 * number + 1, message) for number in range(400)))
            ends = await wire.ends(400)
        refused = [end for end in ends.values() if end.kind == frames.RST_STREAM]
        assert {int.from_bytes(end.payload) for end in refused} == {frames.REFUSED_STREAM}
        assert 16 <= len(ends) - len(refused) < 400
        await desk.grant(ask())
    await proven(settings)


async def test_a_client_that_takes_no_answers_holds_up_nobody(
    settings: Settings, endpoints: bootstrap.Endpoints
) -> None:
    async with opened(endpoints.grpc) as desk:
        await stocked(desk)
        initial_window = 4  # of SETTINGS; 0: not a byte of an answer may be sent
        async with Wire(endpoints.grpc, {initial_window: 0}) as wire:
            for number in range(200):
                message = ask(f"untaken-{number}").SerializeToString()
                wire.send(frames.call(endpoints.grpc, 2 * number + 1, message))

            async def all_granted() -> bool:
                return (await desk.stock()).issued_units == 201

            await eventually(all_granted)
            await none_in_flight(endpoints)
        assert (await desk.issue(ask("untaken-7"))).replayed
    await proven(settings)


@pytest.mark.parametrize(
    "end", ["END_STREAM", "RST_STREAM", "disconnect"], ids=["in the message", "with a reset", "with the connection"]
)
async def test_a_request_that_breaks_off_is_no_request(
    settings: Settings, endpoints: bootstrap.Endpoints, end: str
) -> None:
    async with opened(endpoints.grpc) as desk:
        await stocked(desk)
        half = b"\x00\x00\x00\x00\x40" + ask(fresh("half")).SerializeToString()[:20]
        async with Wire(endpoints.grpc) as wire:
            headers = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, frames.header_block(endpoints.grpc))
            last = frames.END_STREAM if end == "END_STREAM" else 0
            wire.send(headers + frames.frame(frames.DATA, last, 1, half))
            if end == "RST_STREAM":
                wire.send(frames.frame(frames.RST_STREAM, 0, 1, (8).to_bytes(4)))
            await wire.sent()
        await desk.grant(ask())
        assert (await desk.stock()).issued_units == 2
    await none_in_flight(endpoints)
    await proven(settings)


async def test_headers_beyond_16_kib_are_refused_and_the_connection_goes_on(
    settings: Settings, endpoints: bootstrap.Endpoints
) -> None:
    async with opened(endpoints.grpc) as desk:
        await stocked(desk)
        message = ask("big-headers").SerializeToString()
        block = frames.header_block(endpoints.grpc, [(b"x-noise", b"y" * 40_000)])
        parts = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
        async with Wire(endpoints.grpc) as wire:
            wire.send(frames.frame(frames.HEADERS, 0, 1, parts[0]))
            for number, part in enumerate(parts[1:], start=2):
                flags = frames.END_HEADERS if number == len(parts) else 0
                wire.send(frames.frame(frames.CONTINUATION, flags, 1, part))
            wire.send(frames.frame(frames.DATA, frames.END_STREAM, 1, b"\x00" + len(message).to_bytes(4) + message))
            wire.send(frames.call(endpoints.grpc, 3, ask("small-headers").SerializeToString()))
            ends = await wire.ends(2)
        assert ends.keys() == {1, 3}
        assert (await desk.became("big-headers")).WhichOneof("state") == "absent"
        assert (await desk.became("small-headers")).WhichOneof("state") == "granted"
    await proven(settings)


async def test_the_end_of_a_server_is_told_to_its_connections(settings: Settings) -> None:
    async with bootstrap.running(settings) as endpoints:
        wire = Wire(endpoints.grpc)
        await wire.__aenter__()
    kinds = [frame.kind for frame in await wire.rest()]
    assert frames.GOAWAY in kinds
    wire.vanish()


async def test_who_calls_is_recorded(settings: Settings, endpoints: bootstrap.Endpoints, pool: postgres.Pool) -> None:
    async with opened(endpoints.grpc) as desk:
        await stocked(desk)
        await desk.issue(ask("shopping"), principal="shop-7")
    assert "shop-7" in [row["principal"] for row in await pool.fetch("SELECT principal FROM guerdon.principal")]
