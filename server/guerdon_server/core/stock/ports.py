"""What the gate needs from whoever is the authority."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from guerdon_server.core.stock.model import Epoch, ResourceState


class OpenedEpoch(NamedTuple):
    """The group's epoch after an attempt to open one. won: this very call opened it, so its caller loads the gate."""

    epoch: Epoch
    won: bool


class GateSource(Protocol):
    """The ledger, as the gate sees it. Every read is from the primary and sees all that was committed before it.

    When the ledger is away methods raise a ServiceError (UNAVAILABLE), which goes to the callers of the gate as it is.
    """

    async def current_epoch(self, group: int) -> Epoch | None:
        """The epoch that commits of this group are accepted under; None before the first."""
        ...

    async def current_epochs(self, groups: Sequence[int]) -> Mapping[int, Epoch]:
        """The same for many; without those that have none."""
        ...

    async def open_epoch(self, group: int, *, replacing: int | None, run_id: str) -> OpenedEpoch:
        """Compare and set: if `replacing` is current (None: none is), open a later one and answer won = True, else
        answer the current one and won = False.

        When it returns, every commit under an earlier epoch is visible to `resources` and `granted_requests`, and no
        further one will be accepted. `won` must be True at most once for an epoch: whoever won loads it, once.
        """
        ...

    async def resources(self, group: int) -> Sequence[ResourceState]:
        """All accounts with a floor that requests of this group may claim. Unlimited ones are not the gate's."""
        ...

    async def has_grants(self, group: int) -> bool:
        """Whether any request of this group has a grant (then markers must be backfilled after a rebuild)."""
        ...

    async def granted_requests(self, group: int, *, after: str, limit: int) -> Sequence[str]:
        """Up to `limit` ids of requests with a grant that are greater than `after`, ascending ("" begins)."""
        ...
