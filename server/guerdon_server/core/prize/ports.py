"""Who wants to know when a prize has changed."""

from __future__ import annotations

from typing import Protocol

from guerdon_server.core.ledger.model import AccountId, PromotionSid


class PrizeChanges(Protocol):
    """Told after the commit, so that this process learns at once. It may fail: the reconciler heals."""

    async def promotion_changed(self, promotion: PromotionSid) -> None:
        """One of its prizes is new or has other terms."""

    async def capacity_changed(self, promotion: PromotionSid, account: AccountId, capacity: int, version: int) -> None:
        """The capacity (units) of one of its accounts; `version` orders the capacities of an account."""
