"""The ledger on PostgreSQL: commits, fences and look-ups of requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import asyncpg

from guerdon_server.core.ledger.model import CommitItem, CommitResult, Issuance, KnownRequest, RequestState
from guerdon_server.core.ledger.ports import BatchRefused, LedgerAway, OutcomeUnknown
from guerdon_server.core.ledger.postgres.confirmation import confirmed
from guerdon_server.platform.postgres import Pool

if TYPE_CHECKING:
    PoolConnectionProxy: TypeAlias = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

T = TypeVar("T")
_log = logging.getLogger(__name__)

_COMMIT = "SELECT * FROM guerdon.commit_issuances($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"
_FENCE = "SELECT * FROM guerdon.fence_requests($1, $2, $3)"
_CANCEL = "SELECT guerdon.cancel_request($1, $2)"
_LOOKUP = """
SELECT current_setting('synchronous_standby_names') <> '' AS has_standby,
    r.outcome, r.admission, r.basis, r.basis_attribute, r.issuance_id, p.promotion_id, e.entrance_id, z.prize_id,
    s.user_id, x.request_id, coalesce(r.reference, '') AS reference, c.principal, z.kind, a.asset, r.value, r.issued_at,
    r.expires_at
FROM unnest($1::bigint[], $2::text[]) WITH ORDINALITY x(promotion, request_id, ord)
LEFT JOIN guerdon.request r ON r.promotion = x.promotion AND r.request_id = x.request_id
LEFT JOIN guerdon.promotion p ON p.sid = r.promotion
LEFT JOIN guerdon.entrance e ON e.sid = r.entrance
LEFT JOIN guerdon.prize z ON z.sid = r.prize
LEFT JOIN guerdon.asset a ON a.sid = z.asset
LEFT JOIN guerdon.subject s ON s.sid = r.subject
LEFT JOIN guerdon.principal c ON c.sid = r.principal
ORDER BY x.ord
"""
# A write that changes nothing: when it is confirmed, so is all that was committed before it.
_CONFIRM = "SELECT pg_logical_emit_message(true, 'guerdon', 'replay')"
_FINAL = frozenset({RequestState.GRANTED, RequestState.CANCELLED})
_ABSENT = KnownRequest(state=RequestState.ABSENT, admission=0, issuance=None, basis=None, attribute=None)
# Rolled back for a reason that passes: another transaction was in the way.
_TRY_AGAIN = frozenset({"40001", "40P01"})
# The same, and what was taken is seen when it is tried again: at most a key, a holding and a wallet for each item.
_TAKEN = "GD001"
_TAKEN_CONSTRAINTS = frozenset({"request_pkey", "account_kind_owner_item_key"})
_TAKEN_PER_ITEM_MAX = 3
# It waited for a lock as long as it may (lock_timeout), and gave up before it wrote: who holds it stands still.
_LOCKED_OUT = "55P03"
# The server refused for want of resources, is read-only (a standby), or its disk or itself failed: rolled back, and not
# the batch's fault, so that looking for a poison item in it would only add to the trouble.
_NOT_NOW_CLASSES = frozenset({"53", "25", "58", "XX"})


class PostgresLedger:
    """`core.ledger.ports.Ledger`. Any number of calls at once; each takes one connection of the pool.

    Two pools, so that look-ups never wait behind commits. `commit_seconds_max`: after it the connection is cut and
    the outcome is unknown (the server is never asked to cancel a commit).
    """

    def __init__(
        self, commits: Pool, reads: Pool, *, worker: int, commit_seconds_max: float, commit_attempts_max: int = 5
    ) -> None:
        self._commits = commits
        self._reads = reads
        self._worker = worker
        self._commit_seconds_max = commit_seconds_max
        self._commit_attempts_max = commit_attempts_max
        self.retried_total = 0

    async def commit(self, items: Sequence[CommitItem]) -> list[CommitResult]:
        columns = tuple(zip(*items, strict=True))
        attempts, look_again = 0, False
        taken_left = _TAKEN_PER_ITEM_MAX * len(items)
        while attempts < self._commit_attempts_max:
            try:
                row = await self._write(_COMMIT, *columns, self._worker, look_again)
            except asyncpg.PostgresError as error:
                if _is_taken(error) and taken_left:
                    taken_left -= 1
                    look_again = True
                elif error.sqlstate in _TRY_AGAIN:
                    attempts += 1
                    _log.warning("a commit met another transaction", extra={"sqlstate": error.sqlstate})
                else:
                    raise _translated(error) from error
                self.retried_total += 1
                continue
            booked_at = row["booked_at"]
            return [
                CommitResult(code, issuance, expires_at, observed, threshold, booked_at)
                for code, issuance, expires_at, observed, threshold in zip(
                    row["code"], row["issuance"], row["expires_at"], row["observed"], row["threshold"], strict=True
                )
            ]
        raise LedgerAway(f"a commit met other transactions {self._commit_attempts_max} times")

    async def fence(self, keys: Sequence[tuple[int, str, int]]) -> list[tuple[RequestState, int]]:
        try:
            row = await self._write(_FENCE, *zip(*keys, strict=True))
        except asyncpg.PostgresError as error:
            raise _translated(error) from error
        return [(RequestState(o), a) for o, a in zip(row["outcome"], row["admission"], strict=True)]

    async def cancel(self, promotion: int, request_id: str) -> RequestState:
        try:
            row = await self._write(_CANCEL, promotion, request_id)
        except asyncpg.PostgresError as error:
            raise _translated(error) from error
        return RequestState(row[0])

    async def lookup(self, keys: Sequence[tuple[int, str]]) -> list[KnownRequest]:
        promotions, request_ids = zip(*keys, strict=True)
        try:
            rows = await self._reads.fetch(_LOOKUP, promotions, request_ids)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise LedgerAway(f"PostgreSQL does not answer: {error}") from error
        known = [_known(row) for row in rows]
        if rows[0]["has_standby"] and any(request.state in _FINAL for request in known):
            # A primary that crashed while a commit waited for its standby shows that commit after its restart, and a
            # standby promoted later never heard of it: what is acknowledged must have reached the standby first.
            try:
                await self._write(_CONFIRM)
            except asyncpg.PostgresError as error:
                raise _translated(error) from error
        return known

    async def _write(self, query: str, *arguments: Any) -> asyncpg.Record:
        """One statement, its own transaction. Server errors pass through as asyncpg.PostgresError (rolled back)."""
        try:
            connection = await self._commits.acquire()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise LedgerAway(f"PostgreSQL can't be reached: {error}") from error
        try:
            with confirmed(connection):
                row = await self._answer(connection, connection.fetchrow(query, *arguments))
        finally:
            await self._commits.release(connection)
        assert row is not None
        return row

    async def _answer(self, connection: PoolConnectionProxy, call: Awaitable[T]) -> T:
        """Wait without cancelling: past the limit the connection is cut, which leaves the outcome open."""
        task = asyncio.ensure_future(call)
        try:
            done, _ = await asyncio.wait({task}, timeout=self._commit_seconds_max)
        except asyncio.CancelledError:
            connection.terminate()
            raise
        if not done:
            connection.terminate()
            await asyncio.wait({task})
            if task.exception() is not None or task.cancelled():
                raise OutcomeUnknown(f"PostgreSQL did not answer a write within {self._commit_seconds_max:g} s")
        return task.result()


def _is_taken(error: asyncpg.PostgresError) -> bool:
    """Whether another transaction wrote a request key, or opened an account, after this one had looked for it."""
    if isinstance(error, asyncpg.UniqueViolationError):
        return error.constraint_name in _TAKEN_CONSTRAINTS
    return bool(error.sqlstate == _TAKEN)


def _translated(error: asyncpg.PostgresError) -> Exception:
    if (error.sqlstate or "")[:2] in _NOT_NOW_CLASSES or error.sqlstate in {*_TRY_AGAIN, _LOCKED_OUT}:
        return LedgerAway(f"PostgreSQL can't write now: {error}")
    return BatchRefused(f"{error.sqlstate}: {error}")


def _known(row: asyncpg.Record) -> KnownRequest:
    _, outcome, admission, basis, attribute, issuance_id, *rest = row.values()
    if outcome is None:
        return _ABSENT
    issuance = Issuance(issuance_id, *rest) if outcome == RequestState.GRANTED else None
    return KnownRequest(RequestState(outcome), admission, issuance, basis, attribute)
