"""What is done to Valkey is done when the call returns, and mended when its counterpart does."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from redis.exceptions import NoScriptError, OutOfMemoryError

from guerdon_server.platform import redis
from tests.cluster.proxy import Proxy
from tests.cluster.valkey import ValkeyGroup
from tests.cluster.waiting import NotPossible, until


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared(folder: Path) -> AsyncIterator[ValkeyGroup]:
    async with ValkeyGroup(folder) as group:
        yield group


@pytest_asyncio.fixture
async def valkey(shared: ValkeyGroup) -> AsyncIterator[ValkeyGroup]:
    """Empty, the replica in step, led to by nobody."""
    await shared.flush_all()
    yield shared
    shared.followers.clear()
    await shared.heal()


async def write(url: str, key: str, value: str) -> None:
    async with redis.connect(url) as client:
        await client.set(key, value)


async def read(url: str, key: str) -> bytes | None:
    async with redis.connect(url) as client:
        value = await client.get(key)
    assert value is None or isinstance(value, bytes)
    return value


async def test_killed_and_started_again_it_is_empty_and_another_process(valkey: ValkeyGroup) -> None:
    await write(valkey.url, "key", "1")
    before, address = await valkey.run_id(), valkey.address
    await valkey.kill()
    with pytest.raises(redis.RedisUnavailable):
        async with valkey.client() as client:
            await redis.call(client, "PING")
    await valkey.restart_empty()
    assert await read(valkey.url, "key") is None
    assert await valkey.run_id() != before
    assert valkey.address == address


async def test_a_dump_brings_back_what_was_and_nothing_since(valkey: ValkeyGroup) -> None:
    await write(valkey.url, "key", "old")
    await valkey.save_dump()
    before = await valkey.run_id()
    await write(valkey.url, "key", "new")
    await valkey.restart_with_dump()
    assert await read(valkey.url, "key") == b"old"
    assert await valkey.run_id() != before


async def test_without_a_dump_there_is_nothing_to_bring_back(tmp_path: Path) -> None:
    with pytest.raises(NotPossible, match="no dump"):
        await ValkeyGroup(tmp_path, replica=False).restart_with_dump()


async def test_any_key_goes_and_the_same_seed_takes_the_same(valkey: ValkeyGroup) -> None:
    async def gone() -> str | None:
        await valkey.flush_all()
        assert await valkey.delete_any_key(random.Random(7)) is None
        for number in range(5):
            await write(valkey.url, f"key-{number}", "1")
        key = await valkey.delete_any_key(random.Random(7))
        assert key is not None
        assert await read(valkey.url, key) is None
        async with valkey.client() as client:
            assert await client.dbsize() == 4
        return key

    assert await gone() == await gone()


async def test_it_forgets_scripts(valkey: ValkeyGroup) -> None:
    async with valkey.client() as client:
        digest = await client.script_load("return 1")
        assert await client.evalsha(digest, 0) == 1
        await valkey.script_flush()
        with pytest.raises(NoScriptError):
            await client.evalsha(digest, 0)


async def test_out_of_memory_refuses_writes_until_there_is_more(valkey: ValkeyGroup) -> None:
    await valkey.limit_memory()
    with pytest.raises(OutOfMemoryError):
        await write(valkey.url, "key", "1")
    await valkey.unlimit_memory()
    await write(valkey.url, "key", "1")


async def test_with_little_memory_left_small_writes_pass_and_big_ones_end_it(valkey: ValkeyGroup) -> None:
    async def write_much() -> None:
        for number in range(10):
            await write(valkey.url, f"big-{number}", "x" * (512 << 10))

    await valkey.limit_memory(headroom_bytes=1 << 20)
    await write(valkey.url, "small", "1")
    with pytest.raises(OutOfMemoryError):
        await write_much()
    await valkey.unlimit_memory()


async def test_frozen_it_keeps_connections_and_does_not_answer(valkey: ValkeyGroup) -> None:
    await valkey.freeze()
    async with redis.connect(valkey.url, answer_seconds_max=0.1) as client:
        with pytest.raises(redis.RedisUnavailable, match="imeout"):
            await redis.call(client, "PING")
    await valkey.thaw()
    await write(valkey.url, "key", "1")


async def test_a_fail_over_to_a_detached_replica_loses_what_came_after(valkey: ValkeyGroup) -> None:
    await write(valkey.url, "before", "1")
    await valkey.heal()  # in step
    old = valkey.url
    async with Proxy(*valkey.address) as proxy:
        valkey.followers.append(proxy)
        await valkey.detach_replica()
        await write(valkey.url, "after", "1")
        await valkey.fail_over()
        assert valkey.url != old
        assert await read(valkey.url_through(proxy), "before") == b"1"
        assert await read(valkey.url_through(proxy), "after") is None
        with pytest.raises(redis.RedisUnavailable):
            async with redis.connect(old) as client:
                await redis.call(client, "PING")


async def test_in_a_split_two_see_two_and_healed_they_see_one(valkey: ValkeyGroup) -> None:
    old = valkey.url
    async with Proxy(*valkey.address) as left, Proxy(*valkey.address) as right:
        valkey.followers.extend((left, right))
        await valkey.fail_over(keep_old_for=[left])
        await write(valkey.url_through(left), "key", "left")
        await write(valkey.url_through(right), "key", "right")
        assert await read(valkey.url_through(left), "key") == b"left"
        assert await read(valkey.url, "key") == b"right"
        await valkey.heal()
        assert await read(valkey.url_through(left), "key") == b"right"
        assert await read(old, "key") == b"right"  # the old one follows
        await write(valkey.url_through(left), "later", "1")

        async def followed() -> bool:
            return await read(old, "later") == b"1"

        await until(followed, "the old primary to follow")


async def test_a_frozen_old_primary_comes_back_as_a_replica(valkey: ValkeyGroup) -> None:
    old = valkey.url
    async with Proxy(*valkey.address) as proxy:
        valkey.followers.append(proxy)
        await valkey.freeze()
        await valkey.fail_over(keep_old_for=[proxy])
        await write(valkey.url, "key", "new")
        await valkey.heal()
        assert await read(valkey.url_through(proxy), "key") == b"new"
        assert await read(old, "key") == b"new"
