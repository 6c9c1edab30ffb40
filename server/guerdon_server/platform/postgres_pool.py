"""A connection pool whose connections may be lost at any time without taking an answer back."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    BasePool = asyncpg.Pool[asyncpg.Record]
else:  # asyncpg's own classes cannot be subscripted
    BasePool = asyncpg.Pool

_log = logging.getLogger(__name__)


class SteadyPool(BasePool):
    """asyncpg's pool; arguments as of `asyncpg.create_pool`, and to be awaited before use, as that one."""

    def __init__(self, dsn: str, **options: Any) -> None:
        # What create_pool would fill in.
        defaults = {"max_inactive_connection_lifetime": 300.0, "loop": None, "record_class": asyncpg.Record}
        super().__init__(dsn, **{**defaults, **options})

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        """Give a connection back. Never fails for one that was lost, which the pool replaces.

        A session may end between its answer and its return. asyncpg's error for that would reach whoever waits for the
        answer, and be read as if there were none: of a commit that is durable.
        """
        try:
            await super().release(connection, timeout=timeout)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            _log.info("a connection to PostgreSQL was lost after its answer", extra={"why": str(error)})
