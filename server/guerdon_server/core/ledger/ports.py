"""What the ledger promises to those above it, so that they depend on no driver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from guerdon_server.core.ledger.model import CommitItem, CommitResult, KnownRequest, RequestState
from guerdon_server.platform.errors import Code, ServiceError

RETRY_AFTER_MS = 500


class LedgerAway(ServiceError):
    """UNAVAILABLE / LEDGER_UNAVAILABLE: PostgreSQL could not be asked; nothing was sent, nothing happened."""

    def __init__(self, why: str) -> None:
        message = f"{why}; nothing was done by this call, retry with the same request id"
        super().__init__(Code.UNAVAILABLE, "LEDGER_UNAVAILABLE", message, retry_after_ms=RETRY_AFTER_MS)


class OutcomeUnknown(ServiceError):
    """UNAVAILABLE / OUTCOME_UNKNOWN: the call was sent and no answer came: it may have happened, or may still happen.
    Fence, then look."""

    def __init__(self, why: str) -> None:
        message = f"{why}; it may have happened: retry with the same request id (of a grant: or ask with GetIssuance)"
        super().__init__(Code.UNAVAILABLE, "OUTCOME_UNKNOWN", message, retry_after_ms=RETRY_AFTER_MS)


class BatchRefused(Exception):
    """PostgreSQL rolled the whole batch back because of its content; some item is poison."""


class Ledger(Protocol):
    """The authority. All methods raise LedgerAway; those that write also OutcomeUnknown."""

    async def commit(self, items: Sequence[CommitItem]) -> list[CommitResult]:
        """Commit one batch; request keys are distinct. Returns after the commit is durable. Raises BatchRefused."""
        ...

    async def fence(self, keys: Sequence[tuple[int, str, int]]) -> list[tuple[RequestState, int]]:
        """Fence (promotion, request id, admission): what each key holds now. Waits for commits in flight."""
        ...

    async def cancel(self, promotion: int, request_id: str) -> RequestState:
        """Rule a request out for ever unless it was granted: GRANTED or CANCELLED."""
        ...

    async def lookup(self, keys: Sequence[tuple[int, str]]) -> list[KnownRequest]:
        """What the ledger knows of (promotion, request id), in order. A grant or a tombstone that it answers is as
        durable as a commit that was answered; OutcomeUnknown where a standby did not confirm that in time."""
        ...
