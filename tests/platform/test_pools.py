"""A pool of connections to a PostgreSQL that stops answering, or ends sessions."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.cluster.proxy import Proxy

from guerdon_server.platform import postgres


@pytest.mark.timeout(60)
async def test_an_answer_that_does_not_come_is_given_up_and_the_pool_goes_on(empty_database: str) -> None:
    address = urlsplit(empty_database)
    assert address.hostname is not None
    assert address.port is not None
    async with Proxy(address.hostname, address.port) as proxy:
        through = empty_database.replace(f":{address.port}/", f":{proxy.port}/")
        pool = await postgres.create_pool(through, size_min=1, size_max=1, answer_seconds_max=0.2)
        async with pool.acquire() as connection:
            proxy.mute = True
            with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)) as refused:
                async with connection.transaction():
                    await connection.execute("SELECT 1")
            assert postgres.is_unavailable(refused.value)
        proxy.mute = False
        assert await pool.fetchval("SELECT 1") == 1
        assert await pool.fetchval("SELECT 2 FROM pg_sleep(0.3)", timeout=30) == 2, "a call's own limit wins"
        pool.terminate()


async def test_a_session_that_ends_after_its_answer_does_not_take_the_answer_back(empty_database: str) -> None:
    """The connection may be lost in the loop tick between the answer and its return to the pool."""
    pool = await postgres.create_pool(empty_database, size_min=1, size_max=1)
    for number in range(3):
        async with pool.acquire() as connection:
            assert await connection.fetchval("SELECT $1::int", number) == number
            asyncio.get_running_loop().call_soon(connection.terminate)
    assert await pool.fetchval("SELECT 1") == 1, "and the pool has its connection back"
    await pool.close()
