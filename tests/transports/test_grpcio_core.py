"""What the server does to grpcio so that its threads wake each other less often (docs/adr/0017)."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from guerdon_server.rpc import grpcio_core
from guerdon_server.rpc.grpcio_core import woken_server

_METHOD = "/test.Echo/Echo"
_CALLS = 96


@asynccontextmanager
async def serving(answer: grpc.RpcMethodHandler[bytes, bytes]) -> AsyncIterator[grpc.Channel]:
    """A server of one method and health, and a channel of another thread to it."""
    server = woken_server([("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Echo": answer}),))
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(0)


def called(channel: grpc.Channel, number: int, method: str = _METHOD, request: bytes = b"x") -> list[Any]:
    """So many calls, sent by gRPC's threads whatever the event loop does."""
    call: Any = channel.unary_unary(method)
    return [call.future(request) for _ in range(number)]


async def answered(calls: list[Any]) -> list[bytes]:
    """What they were answered."""
    answers: list[bytes] = await asyncio.gather(*(asyncio.to_thread(call.result) for call in calls))
    return answers


async def test_several_calls_begin_in_one_turn_of_the_event_loop() -> None:
    turns: Counter[int] = Counter()
    turn = 0
    loop = asyncio.get_running_loop()

    def tick() -> None:
        nonlocal turn
        turn += 1
        if not over:
            loop.call_soon(tick)

    async def echo(request: bytes, _context: object) -> bytes:
        turns[turn] += 1
        return request

    over = False
    async with serving(grpc.unary_unary_rpc_method_handler(echo)) as channel:
        await answered(called(channel, 1))
        loop.call_soon(tick)
        calls = called(channel, _CALLS)
        time.sleep(0.5)  # noqa: ASYNC251  the event loop stands still while they arrive
        assert await answered(calls) == [b"x"] * _CALLS
        over = True

    assert sum(turns.values()) == _CALLS + 1
    assert max(turns.values()) > 8


async def test_whoever_takes_a_call_knows_all_services() -> None:
    async def echo(request: bytes, _context: object) -> bytes:
        return request

    async with serving(grpc.unary_unary_rpc_method_handler(echo)) as channel:
        answers = await answered(called(channel, _CALLS, f"/{health.SERVICE_NAME}/Check", b""))

    serving_now = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
    assert answers == [serving_now.SerializeToString()] * _CALLS


async def test_nobody_waits_for_calls_after_the_end(caplog: pytest.LogCaptureFixture) -> None:
    async def echo(request: bytes, _context: object) -> bytes:
        return request

    before = asyncio.all_tasks()
    async with serving(grpc.unary_unary_rpc_method_handler(echo)) as channel:
        await answered(called(channel, 1))
    await asyncio.sleep(0)

    left = [task for task in asyncio.all_tasks() - before if "_ask" in repr(task)]
    assert not left
    assert not caplog.records


@pytest.mark.skipif(sys.platform != "linux", reason="SCHED_BATCH is Linux's")
async def test_grpcs_poller_takes_the_core_from_no_one() -> None:
    async def echo(request: bytes, _context: object) -> bytes:
        return request

    async with serving(grpc.unary_unary_rpc_method_handler(echo)):
        pollers = [thread.native_id for thread in threading.enumerate() if "_poll_wrapper" in thread.name]
        assert pollers
        assert {os.sched_getscheduler(each or 0) for each in pollers} == {os.SCHED_BATCH}
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


async def test_all_wake_ups_are_read_at_once() -> None:
    with grpcio_core._wake_ups_read_together():
        ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.send(b"1" * 100)
        assert ours.recv(1) == b"1" * 100
        with pytest.raises(BlockingIOError):
            ours.recv(1)
