"""A plan that a connection made and kept while the tables were small must not read them whole when they are large."""

from __future__ import annotations

from guerdon_server.core.ledger.postgres.ledger import PostgresLedger
from guerdon_server.platform import postgres

from .conftest import Books

_ITEMS = 100
_STRANGERS = 20_000
_READ = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'account'"


async def test_a_commit_reads_its_own_accounts_and_no_others(books: Books, database: str) -> None:
    prize = await books.prize("coupon", stock=1000, limit=5)
    pool = await postgres.create_pool(database, size_min=1, size_max=1)
    ledger = PostgresLedger(pool, pool, worker=1, commit_seconds_max=60)
    for number in range(10):  # plans are kept from the sixth execution on at the latest
        await ledger.commit([books.item(prize, f"early-{number}", f"early-{number}")])
    await pool.execute(
        "INSERT INTO guerdon.account (kind, owner, item) SELECT 3, 1000000 + n, 1000000 FROM generate_series(1, $1) n",
        _STRANGERS,
    )
    reads = []
    for attempt in ("first", "second"):
        await pool.execute("SELECT pg_stat_force_next_flush()")
        before = await pool.fetchval(_READ)
        await ledger.commit([books.item(prize, f"u{number}", f"{attempt}-{number}") for number in range(_ITEMS)])
        await pool.execute("SELECT pg_stat_force_next_flush()")
        reads.append(await pool.fetchval(_READ) - before)
    await pool.close()
    assert reads[0] < _ITEMS, "accounts that are new are not read"
    assert _ITEMS <= reads[1] <= 4 * _ITEMS, "each item looks its few accounts up"
