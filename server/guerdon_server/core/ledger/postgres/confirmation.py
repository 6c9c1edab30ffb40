"""Writes of which it is known whether they happened; all else is OutcomeUnknown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from guerdon_server.core.ledger.ports import OutcomeUnknown

if TYPE_CHECKING:
    PoolConnectionProxy: TypeAlias = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

_STANDBY_DID_NOT_CONFIRM = "01000"
# The session was ended from outside: a commit may have got through.
_ENDED_CLASSES = frozenset({"08", "57"})


@contextlib.contextmanager
def confirmed(session: PoolConnectionProxy) -> Iterator[None]:
    """Raises OutcomeUnknown if the session ends in the block, or at its end if a commit inside it was answered without
    its standby. Other errors of PostgreSQL pass: it has rolled back.

    When somebody cancels a commit that waits for the standby, PostgreSQL answers it with a warning, as if it were done:
    it is done here, and lost if the standby is promoted.
    """
    unconfirmed: list[str] = []

    def listen(_: object, message: asyncpg.PostgresLogMessage) -> None:
        if message.sqlstate == _STANDBY_DID_NOT_CONFIRM:
            unconfirmed.append(str(message))

    try:
        session.add_log_listener(listen)
        yield
    except asyncpg.PostgresError as error:
        if (error.sqlstate or "")[:2] in _ENDED_CLASSES or _is_gone(session):
            raise OutcomeUnknown(f"PostgreSQL ended the session during a write: {error}") from error
        raise
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise OutcomeUnknown(f"the connection to PostgreSQL broke during a write: {error}") from error
    finally:
        with contextlib.suppress(asyncpg.InterfaceError):  # the pool has dropped it already
            session.remove_log_listener(listen)
    if unconfirmed:
        raise OutcomeUnknown(f"the standby did not confirm a write: {unconfirmed[0]}")


def _is_gone(session: PoolConnectionProxy) -> bool:
    try:
        return session.is_closed()
    except asyncpg.InterfaceError:  # the pool has dropped it already
        return True
