"""A call that is over is gone at once, however it ended, and not when the garbage collector comes.

gRPC counts a call among those of its connection (calls_per_connection_max) until its last object is gone: calls that
wait for the collector lock their connection out, and the collector of a server that answers nothing never comes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from collections.abc import Awaitable, Callable, Iterator

import grpc
import grpc.aio
import pytest

from guerdon.v1 import prize_pb2
from guerdon_server import bootstrap
from guerdon_server.platform import postgres
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, Refusal, ask, item, opened, outcome
from tests.transports import on_both_transports

pytestmark = on_both_transports

_CALLS_OF_A_CONNECTION = 16
_CALLS = 3 * _CALLS_OF_A_CONNECTION


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def narrow(settings: Settings) -> Settings:
    return dataclasses.replace(settings, calls_per_connection_max=_CALLS_OF_A_CONNECTION, queue_ms_max=50)


def _granted(desk: Desk) -> Awaitable[object]:
    return desk.issue(ask())


def _unknown_promotion(desk: Desk) -> Awaitable[object]:
    return desk.issue(ask(promotion_id="nowhere"))


def _unknown_prize(desk: Desk) -> Awaitable[object]:
    return desk.issue(ask(prize_id="nothing"))


def _not_bound(desk: Desk) -> Awaitable[object]:
    return desk.issue(ask(entrance_id="nowhere"))


def _malformed(desk: Desk) -> Awaitable[object]:
    return desk.issue(ask(user_id=" "))


def _reused(desk: Desk) -> Awaitable[object]:
    return desk.issue(ask("r-1", user_id="another"))


def _sold_out(desk: Desk) -> Awaitable[object]:
    return desk.issue(ask(prize_id="gone"))


def _replayed(desk: Desk) -> Awaitable[object]:
    return desk.issue(ask("r-1"))


def _batch(desk: Desk) -> Awaitable[object]:
    return desk.batch([item(), item(prize_id="gone"), item(prize_id="nothing"), item("r-1", user_id="another")])


def _together(desk: Desk) -> Awaitable[object]:
    return desk.batch([item(), item(prize_id="gone"), item(prize_id="nothing")], together=True)


def _too_late(desk: Desk) -> Awaitable[object]:
    return desk.issue(ask(), timeout=0.001)


def _absent(desk: Desk) -> Awaitable[object]:
    return desk.became("never")


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "call",
    [_granted, _unknown_promotion, _unknown_prize, _not_bound, _malformed, _reused, _sold_out, _replayed, _batch,
     _together, _too_late, _absent],
)  # fmt: skip
async def test_a_connection_goes_on_after_any_number_of(
    narrow: Settings, call: Callable[[Desk], Awaitable[object]]
) -> None:
    async with bootstrap.running(narrow) as endpoints, opened(endpoints.grpc) as desk:
        await desk.opens()
        await desk.coupon()
        await desk.coupon("gone", stock=0)
        await desk.grant(ask("r-1"))
        await _goes_on(desk, call)


async def _goes_on(desk: Desk, call: Callable[[Desk], Awaitable[object]]) -> None:
    for number in range(_CALLS):
        answer = await outcome(call(desk))
        assert not _is_locked_out(answer), f"after {number} calls: {answer}"
        await asyncio.sleep(0)
    await _settled()
    assert not _is_locked_out(await outcome(desk.issue(ask())))


def _is_locked_out(answer: object) -> bool:
    return isinstance(answer, Refusal) and "RST_STREAM" in answer.message


async def _settled() -> None:
    """What the server does after its last answer is done."""
    await asyncio.sleep(0.1)


@pytest.mark.usefixtures("no_collector")
async def test_a_connection_goes_on_after_callers_gave_up_and_calls_were_refused(
    narrow: Settings, pool: postgres.Pool
) -> None:
    async with bootstrap.running(narrow) as endpoints, opened(endpoints.grpc) as desk:
        await desk.opens()
        await desk.coupon()
        await desk.grant(ask())
        for _ in range(4):
            async with pool.acquire() as session, session.transaction():
                await session.execute("SELECT FROM guerdon.account FOR UPDATE")
                stuck = []
                for _ in range(4):  # one in flight, the others queued behind it
                    stuck.append(asyncio.create_task(outcome(desk.issue(ask(), timeout=1))))
                    await asyncio.sleep(0.05)
                refused = [await outcome(desk.issue(ask(), timeout=1)) for _ in range(8)]
                given_up = await asyncio.gather(*stuck)
            codes = {answer.code for answer in (*refused, *given_up) if isinstance(answer, Refusal)}
            assert codes <= {"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}, (refused, given_up)
            assert "DEADLINE_EXCEEDED" in codes
            await _settled()
        await desk.grant(ask())


@pytest.mark.usefixtures("no_collector")
async def test_a_connection_goes_on_after_calls_were_cancelled(narrow: Settings) -> None:
    async with (
        bootstrap.running(narrow) as endpoints,
        grpc.aio.insecure_channel(endpoints.grpc) as channel,
        opened(endpoints.grpc) as desk,
    ):
        await desk.opens()
        await desk.coupon()
        call: grpc.aio.UnaryUnaryMultiCallable[prize_pb2.IssuePrizeRequest, prize_pb2.IssuePrizeResponse]
        call = channel.unary_unary(
            "/guerdon.v1.PrizeService/IssuePrize",
            request_serializer=prize_pb2.IssuePrizeRequest.SerializeToString,
            response_deserializer=prize_pb2.IssuePrizeResponse.FromString,
        )
        for number in range(_CALLS):
            under_way = call(ask(), timeout=5)
            await asyncio.sleep(0.001 * (number % 8))
            under_way.cancel()
        await _settled()
        assert (await call(ask(), timeout=5)).HasField("granted")
