"""The Redis client: bounded waits, scripts that come back after a lost cache."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from redis import exceptions as errors
from redis.asyncio.connection import AbstractConnection
from tests.issuing.desk import eventually

from guerdon_server.platform import redis
from guerdon_server.platform.engines import ValkeyEngine

ECHO = redis.Script("echo", "redis.call('INCR', KEYS[1]) return {KEYS[1], ARGV[1], #ARGV}")


@pytest_asyncio.fixture(loop_scope="session")
async def own_valkey(tmp_path: Path) -> AsyncIterator[ValkeyEngine]:
    """One that a test may kill and freeze."""
    engine = ValkeyEngine(tmp_path / "data")
    await engine.start()
    yield engine
    await engine.stop()


async def test_a_script_returns_bytes(redis_client: redis.Client) -> None:
    assert await ECHO(redis_client, ["{a}é"], ["10000000000000001", b"\xff", 3]) == [
        "{a}é".encode(),
        b"10000000000000001",
        3,
    ]


async def test_a_lost_script_cache_is_filled_again_and_the_script_runs_once(redis_client: redis.Client) -> None:
    for times in (1, 2, 3):
        await redis_client.script_flush()
        await ECHO(redis_client, ["k"], ["v"])
        assert await redis_client.get("k") == str(times).encode()
    assert await redis_client.script_exists(ECHO.digest) == [True]


async def test_a_script_is_loaded_from_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_package"
    (package / "lua").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "lua" / "one.lua").write_text("return 1")
    monkeypatch.syspath_prepend(tmp_path)
    script = redis.Script.load("some_package", "lua/one.lua")
    assert (script.name, script.source) == ("lua/one.lua", "return 1")
    assert script.digest == "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"


async def test_a_defect_in_a_script_is_not_taken_for_an_outage(redis_client: redis.Client) -> None:
    with pytest.raises(errors.ResponseError, match="nonsense"):
        await redis.Script("broken", "return nonsense()")(redis_client, [], [])


async def test_nobody_there(own_valkey: ValkeyEngine) -> None:
    client = redis.connect(own_valkey.url)
    assert await redis.is_healthy(client)
    await own_valkey.kill()
    with pytest.raises(redis.RedisUnavailable):
        await ECHO(client, ["k"], ["v"])
    assert not await redis.is_healthy(client)
    await client.aclose()


async def test_no_answer(own_valkey: ValkeyEngine) -> None:
    client = redis.connect(own_valkey.url, answer_seconds_max=0.1, connect_seconds_max=0.1)
    await eventually(lambda: redis.is_healthy(client))  # so little may be too little for a busy machine
    os.kill(own_valkey.pid, signal.SIGSTOP)
    try:
        with pytest.raises(redis.RedisUnavailable, match="Timeout"):
            await ECHO(client, ["k"], ["v"])
    finally:
        os.kill(own_valkey.pid, signal.SIGCONT)
    await client.aclose()


async def test_a_lost_reply_runs_the_script_twice(own_valkey: ValkeyEngine) -> None:
    # Not wanted, but so it is with every client that reconnects: the reason why scripts are idempotent by an id.
    async with lossy_proxy(own_valkey.port, lose=b"lose me") as port:
        client = redis.connect(own_valkey.url.replace(f":{own_valkey.port}/", f":{port}/"))
        assert (await ECHO(client, ["k"], ["lose me"]))[1] == b"lose me"
        assert await client.get("k") == b"2"
        await client.aclose()


@asynccontextmanager
async def lossy_proxy(to_port: int, *, lose: bytes) -> AsyncIterator[int]:
    """Passes everything on, but cuts the connection once in place of the first reply that contains `lose`."""
    lost = False

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        nonlocal lost
        while data := await reader.read(65536):
            if replies and lose in data and not lost:
                lost = True
                break
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", to_port)
        async with asyncio.TaskGroup() as both:
            both.create_task(pass_on(reader, to_writer, replies=False))
            both.create_task(pass_on(to_reader, writer, replies=True))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_a_full_memory_is_unavailable_and_nothing_is_written(own_valkey: ValkeyEngine) -> None:
    client = redis.connect(own_valkey.url)
    await client.config_set("maxmemory", "1")
    with pytest.raises(redis.RedisUnavailable, match="OutOfMemory"):
        await ECHO(client, ["k"], ["v"])
    assert await client.exists("k") == 0
    await client.aclose()


async def test_after_a_restart_the_next_call_works_on_a_greeted_connection(own_valkey: ValkeyEngine) -> None:
    greeted: list[AbstractConnection] = []

    async def greet(connection: AbstractConnection) -> None:
        greeted.append(connection)

    client = redis.connect(own_valkey.url, on_connect=greet)
    await ECHO(client, ["k"], ["v"])
    assert len(greeted) == 1
    await own_valkey.kill()
    await own_valkey.start()
    await ECHO(client, ["k"], ["v"])
    assert len(greeted) == 2
    await client.aclose()


async def test_a_greeting_that_refuses_lets_no_call_through(own_valkey: ValkeyEngine) -> None:
    class Refused(Exception):
        pass

    async def refuse(connection: AbstractConnection) -> None:
        raise Refused

    client = redis.connect(own_valkey.url, on_connect=refuse)
    with pytest.raises(Refused):
        await redis.call(client, "SET", "k", "v")
    await client.aclose()
    plain = redis.connect(own_valkey.url)
    assert await redis.call(plain, "EXISTS", "k") == 0
    await plain.aclose()
