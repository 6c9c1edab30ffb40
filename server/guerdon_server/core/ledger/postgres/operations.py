"""Mutations by request id: each happens once, and a repetition is recognised. Owns the table guerdon.operation."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import asyncpg

from guerdon_server.core.ledger.postgres.confirmation import confirmed
from guerdon_server.core.ledger.postgres.statements import Session
from guerdon_server.platform.errors import Code, ServiceError, failed_precondition
from guerdon_server.platform.postgres import Pool

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_CLAIM = """
INSERT INTO guerdon.operation (method, request_id, content, principal, done_at)
VALUES ($1, $2, $3::jsonb, $4, guerdon.now()) ON CONFLICT DO NOTHING RETURNING true
"""
# The lock is a write: before a repetition is acknowledged, a synchronous standby has what it repeats.
_RECALL = "SELECT content FROM guerdon.operation WHERE method = $1 AND request_id = $2 FOR NO KEY UPDATE"
_LOCK_SECONDS_MAX = 5
_CONNECTION_SECONDS_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for a mutation, and under which id it may be repeated."""

    request_id: str
    principal: str


@asynccontextmanager
async def mutation(pool: Pool) -> AsyncIterator[Session]:
    """A transaction, committed at the end of the block, that waits for no lock longer than 5 seconds.

    A commit that hangs would otherwise keep every operator's call, and their connections, waiting. Raises ABORTED /
    CONTENTION for that and for deadlocks, OutcomeUnknown if the standby did not confirm the commit, TimeoutError if no
    connection is to be had.
    """
    try:
        async with pool.acquire(timeout=_CONNECTION_SECONDS_MAX) as session:
            with confirmed(session):
                async with session.transaction():
                    await session.execute(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS_MAX}s'")
                    yield session
    except (
        asyncpg.LockNotAvailableError,
        asyncpg.DeadlockDetectedError,
        asyncpg.SerializationError,
    ) as error:
        message = "others are changing the same; nothing was changed here: repeat with the same request id"
        raise ServiceError(Code.ABORTED, "CONTENTION", message, retry_after_ms=100) from error


async def claim(session: Session, method: str, content: DataclassInstance, caller: Caller) -> bool:
    """Whether this is the first time; False: it was done before, with the same content.

    Call it first in the transaction: it waits for a concurrent twin, and whoever is refused later leaves no trace.
    Raises ALREADY_EXISTS / REQUEST_ID_REUSED, which names the first field that differs, for other content.
    """
    asked = _canonical(content)
    if await session.fetchval(_CLAIM, method, caller.request_id, json.dumps(asked), caller.principal):
        return True
    done = json.loads(await session.fetchval(_RECALL, method, caller.request_id))
    if done == asked:
        return False
    field = next(name for name in (*asked, *done) if asked.get(name, ...) != done.get(name, ...))
    raise ServiceError(
        Code.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
        f"request_id {caller.request_id} was used for another {method}: {field} differs. Use a new request_id.",
        metadata={"request_id": caller.request_id, "field": field},
    )


def check_etag(given: str, current: str, **ids: str) -> None:
    """Raises FAILED_PRECONDITION / ETAG_MISMATCH if an etag is given and stale; `ids` name the resource."""
    if given and given != current:
        raise failed_precondition(
            "ETAG_MISMATCH",
            f"{', '.join(ids.values())} has changed since (etag {current}). Read it again, then decide anew.",
            etag=current,
            **ids,
        )


def _canonical(content: DataclassInstance) -> Mapping[str, Any]:
    """What JSON gives back, so that what was stored compares equal."""
    fields: Mapping[str, Any] = json.loads(json.dumps(asdict(content), default=_instant))
    return fields


def _instant(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} in the content of an operation")
