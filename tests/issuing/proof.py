"""What every scenario ends with: the books are proven, and the gate comes to rest."""

from __future__ import annotations

from guerdon_server import bootstrap
from guerdon_server.platform import redis
from guerdon_server.settings import Settings
from tests.issuing.desk import eventually


async def proven(settings: Settings) -> None:
    """Every check of `guerdon verify` holds. Right at once, whatever is in flight."""
    failed = [check for check in await bootstrap.verify(settings) if not check.ok]
    assert not failed, failed


async def at_rest(settings: Settings) -> None:
    """Waits until no admission is open: settled by whoever made it, or fenced by the sweeper."""

    async def nothing_open() -> bool:
        return await open_admissions(settings) == 0

    await eventually(nothing_open)


async def open_admissions(settings: Settings) -> int:
    """How many there are in Redis, over all promotions."""
    client = redis.connect(settings.redis_url)
    try:
        keys = await client.keys("guerdon:*:admissions")
        return sum([await client.hlen(key) - 1 for key in keys])  # without the sentinel
    finally:
        await client.aclose()
