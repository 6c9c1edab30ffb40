"""What issuing needs from outside of itself."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Protocol

from guerdon_server.core.issuance.model import PromotionTerms


class TermsSource(Protocol):
    """Where the terms of promotions come from."""

    async def load(self, promotion_ids: Sequence[str]) -> tuple[dict[str, PromotionTerms], dt.datetime]:
        """The current terms of those that exist, and the system's time at the reading."""
        ...

    async def versions(self, promotion_ids: Sequence[str]) -> dict[str, int]:
        """The current versions of those that exist."""
        ...

    async def changed(self, since_version: int) -> tuple[list[str], int]:
        """Ids of promotions with a version above the given one, and the highest version."""
        ...

    async def prize_exists(self, prize_id: str) -> bool:
        """Whether any promotion has it: tells an unknown prize from one of another promotion."""
        ...

    async def entrance_exists(self, entrance_id: str) -> bool:
        """Whether it is in the catalogue: tells an unknown entrance from an unbound one."""
        ...
