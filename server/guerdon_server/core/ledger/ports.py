"""What the ledger promises to those above it, so that they depend on no driver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from guerdon_server.core.ledger.model import CommitItem, CommitResult, KnownRequest, RequestState


class LedgerAway(Exception):
    """PostgreSQL could not be asked: nothing was sent, nothing happened."""


class OutcomeUnknown(Exception):
    """The call was sent and no answer came: it may have happened, or may still happen. Fence, then look."""


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
        """What the ledger knows of (promotion, request id), in order."""
        ...
