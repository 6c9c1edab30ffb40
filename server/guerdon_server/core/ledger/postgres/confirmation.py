"""Writes that count only once the synchronous standby has them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import asyncpg

from guerdon_server.core.ledger.ports import OutcomeUnknown
from guerdon_server.core.ledger.postgres.statements import Session

_STANDBY_DID_NOT_CONFIRM = "01000"


@contextlib.contextmanager
def confirmed(session: Session) -> Iterator[None]:
    """Raises OutcomeUnknown at the end of the block if a commit inside it was answered without its standby.

    When somebody cancels a commit that waits for the standby, PostgreSQL answers it with a warning, as if it were done:
    it is done here, and lost if the standby is promoted.
    """
    unconfirmed: list[str] = []

    def listen(_: object, message: asyncpg.PostgresLogMessage) -> None:
        if message.sqlstate == _STANDBY_DID_NOT_CONFIRM:
            unconfirmed.append(str(message))

    session.add_log_listener(listen)
    try:
        yield
    finally:
        with contextlib.suppress(asyncpg.InterfaceError):  # the pool has dropped it already
            session.remove_log_listener(listen)
    if unconfirmed:
        raise OutcomeUnknown(f"the standby did not confirm a write: {unconfirmed[0]}")
