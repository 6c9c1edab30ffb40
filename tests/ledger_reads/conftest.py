"""Books to read."""

from __future__ import annotations

import pytest_asyncio

from guerdon_server.platform import postgres
from tests.ledger_reads.books import Books, filled_books


@pytest_asyncio.fixture(loop_scope="session")
async def books(pool: postgres.Pool) -> Books:
    return await filled_books(pool)
