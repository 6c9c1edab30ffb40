"""Several workers on one port: what a caller, an operator and a scraper see of them."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from guerdon_server.platform import postgres
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, ask, eventually, opened
from tests.issuing.proof import at_rest, open_admissions, proven
from tests.running.processes import environment
from tests.running.processes import refused as refused_alone
from tests.transports import on_native
from tests.workers.fleet import alive, channel, fleet, refused

_HANDLED = (
    "grpc_server_handled_total",
    frozenset(
        {
            ("grpc_type", "unary"),
            ("grpc_service", "guerdon.v1.PrizeService"),
            ("grpc_method", "IssuePrize"),
            ("grpc_code", "OK"),
        }
    ),
)
_GRANTED = ("guerdon_outcomes_total", frozenset({("outcome", "granted")}))


async def test_connections_spread_and_move_and_every_worker_does_the_whole_job(settings: Settings) -> None:
    async with AsyncExitStack() as stack:
        some = await stack.enter_async_context(fleet(settings, 2, GUERDON_CONNECTION_AGE_SECONDS_MAX="3"))
        desks = [Desk(await stack.enter_async_context(channel(some.grpc))) for _ in range(24)]
        await desks[0].opens()
        await desks[0].coupon(stock=10_000)
        await asyncio.gather(*(desk.grant(ask()) for desk in desks))
        spread = some.connections()
        assert len(spread) == 2
        assert all(spread.values()), spread  # by the kernel's hash: with 24, both have some

        first = some.callers_ports()
        granted = len(desks)

        async def moved() -> bool:
            nonlocal granted
            await asyncio.gather(*(desk.grant(ask()) for desk in desks))
            granted += len(desks)
            return not first & some.callers_ports()

        await eventually(moved)

        states = [await _health(desk.channel) for desk in desks[:6]]
        assert set(states) == {health_pb2.HealthCheckResponse.SERVING}
        assert "guerdon.v1.PrizeService" in await _services(desks[0].channel)

        merged = await asyncio.to_thread(some.scraped)
        assert merged[_HANDLED] == merged[_GRANTED] == granted
        by_worker = {name: value for name, value in merged.items() if name[0] == "guerdon_calls_in_flight"}
        assert {dict(labels)["worker"] for _, labels in by_worker} == {"0", "1"}
        assert merged["guerdon_workers", frozenset({("state", "serving")})] == 2

        workers = some.workers()
        some.signal(signal.SIGTERM)
        assert await some.ended() == 0, some.raw
        assert not any(map(alive, workers))
    await at_rest(settings)
    await proven(settings)


async def _health(through: grpc.aio.Channel) -> int:
    stub: Any = health_pb2_grpc.HealthStub(through)
    return int((await stub.Check(health_pb2.HealthCheckRequest())).status)


async def _services(through: grpc.aio.Channel) -> set[str]:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(through)  # type: ignore[arg-type]
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    async for answer in call:
        return {service.name for service in answer.list_services_response.service}
    raise AssertionError("no answer")


async def test_it_drains_all_when_it_is_stopped(settings: Settings) -> None:
    async with AsyncExitStack() as stack:
        some = await stack.enter_async_context(fleet(settings))
        desks = [Desk(await stack.enter_async_context(channel(some.grpc))) for _ in range(12)]
        await desks[0].opens()
        await desks[0].coupon()
        await asyncio.gather(*(desk.grant(ask()) for desk in desks))
        assert all(some.connections().values())
        connection = await postgres.connect(settings.postgres_dsn)
        await connection.execute("BEGIN; LOCK TABLE guerdon.request IN EXCLUSIVE MODE")
        waiting = [asyncio.create_task(desk.issue(ask())) for desk in desks]

        async def in_flight() -> bool:
            return await open_admissions(settings) == len(desks)

        await eventually(in_flight)
        some.signal(signal.SIGTERM)
        told = await some.heard("what is in flight is finished", 2)
        assert {event["worker"] for event in told} == {0, 1}
        assert not any(task.done() for task in waiting)
        await connection.execute("ROLLBACK")
        await connection.close()
        assert all(answer.HasField("granted") for answer in await asyncio.gather(*waiting))
        assert await some.ended() == 0, some.raw
    assert await open_admissions(settings) == 0
    await proven(settings)


async def test_nothing_is_left_of_a_supervisor_that_is_killed(settings: Settings) -> None:
    async with fleet(settings) as some:
        workers = some.workers()
        some.signal(signal.SIGKILL)
        await some.ended()
        await eventually(lambda: not any(map(alive, workers)))
    async with fleet(settings, GUERDON_GRPC_PORT=str(some.port)) as again, opened(again.grpc) as desk:
        await desk.opens()


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [("GUERDON_TEST_MODE", "false", "fsync"), ("GUERDON_REQUESTS_IN_FLIGHT_MAX", "0", "requests_in_flight_max")],
)
async def test_what_one_server_refuses_ends_all_with_its_words_and_status(
    settings: Settings, variable: str, value: str, told: str
) -> None:
    alone = await refused_alone(environment(settings, **{variable: value}))

    ended = await refused(settings, 2, **{variable: value})

    assert ended.status == alone.status != 0
    assert told in alone.told
    assert ended.told.count(told) == alone.told.count(told)  # said once, not by each worker
    assert "Traceback" not in ended.told


@on_native
async def test_a_transport_that_can_not_move_connections_is_refused(settings: Settings) -> None:
    ended = await refused(settings)

    assert ended.status != 0
    assert ended.told.count("Set transport = grpcio, or leave out --workers") == 1
    assert "Traceback" not in ended.told


async def test_a_port_that_others_share_is_taken(settings: Settings) -> None:
    async with fleet(settings) as some:
        ended = await refused(settings, GUERDON_GRPC_PORT=str(some.port))
    assert ended.status != 0
    assert str(some.port) in ended.told
    assert "Traceback" not in ended.told
