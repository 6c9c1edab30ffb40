"""How many stock buckets a promotion has is part of its epoch."""

from __future__ import annotations

from guerdon_server.core.issuance.postgres.gate_source import PostgresGateSource
from guerdon_server.platform import postgres
from tests.ledger.conftest import Books


async def set_buckets(pool: postgres.Pool, promotion_id: str, buckets: int | None) -> int | None:
    found: int | None = await pool.fetchval("SELECT guerdon.set_gate_buckets($1, $2)", promotion_id, buckets)
    return found


async def test_another_number_ends_the_epoch(books: Books, pool: postgres.Pool) -> None:
    source = PostgresGateSource(pool)
    name = await pool.fetchval("SELECT promotion_id FROM guerdon.promotion WHERE sid = $1", books.promotion)
    before = await source.current_epoch(books.promotion)
    assert await set_buckets(pool, name, None) == 1
    assert await set_buckets(pool, name, 1) == 1
    assert await source.current_epoch(books.promotion) == before
    assert await set_buckets(pool, name, 3) == 3
    spread = await source.current_epoch(books.promotion)
    assert spread
    assert (spread.buckets, any(spread.run_ids)) == (3, False)
    assert before is None or spread.value >> 24 == (before.value >> 24) + 1
    opened = await source.open_epoch(books.promotion, replacing=spread.value, run_id="a,,b")
    assert opened.won
    assert opened.epoch.run_ids == ("a", "", "b")
    assert await set_buckets(pool, name, None) == 3
    assert await set_buckets(pool, name, 3) == 3
    assert await source.current_epoch(books.promotion) == opened.epoch
    assert await set_buckets(pool, name, 2) == 2
    late = await source.open_epoch(books.promotion, replacing=opened.epoch.value, run_id="a,b,c")
    assert not late.won
    assert late.epoch.value >> 24 == (opened.epoch.value >> 24) + 1


async def test_a_promotion_that_there_is_not(books: Books, pool: postgres.Pool) -> None:
    assert await set_buckets(pool, "nobody's", 3) is None
