"""Who wants to know when a promotion has changed."""

from __future__ import annotations

from typing import Protocol

from guerdon_server.core.ledger.model import AccountId, PromotionSid


class PromotionChanges(Protocol):
    """Told after the commit, so that this process learns at once. It may fail: the reconciler heals."""

    async def promotion_changed(self, promotion: PromotionSid) -> None:
        """Its state, window or entrances."""

    async def capacity_changed(self, promotion: PromotionSid, account: AccountId, capacity: int, version: int) -> None:
        """The capacity (units) of one of its accounts; `version` orders the capacities of an account."""
