"""The gate's port to the ledger, in memory: epochs by compare-and-set, accounts with a floor, grants."""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from guerdon_server.core.stock.model import AdmitItem, Epoch, ResourceState
from guerdon_server.core.stock.ports import OpenedEpoch
from guerdon_server.platform.errors import Code, ServiceError


class MemoryLedger:
    """Refuses what the real one refuses: another epoch, a second grant of a request, more than there is."""

    def __init__(self) -> None:
        self.epochs: dict[int, list[Epoch]] = defaultdict(list)
        self.accounts: dict[int, ResourceState] = {}
        self.grants: dict[int, set[str]] = defaultdict(set)
        self.grants_readable = asyncio.Event()  # cleared: `granted_requests` waits
        self.grants_readable.set()
        self.losers_return = asyncio.Event()  # cleared: `open_epoch` waits before it says that another was faster
        self.losers_return.set()
        self.away = False
        self._random = itertools.count(7)

    def add(self, resource: int, capacity: int, *, used: int = 0) -> None:
        """A new account, version 1."""
        self.accounts[resource] = ResourceState(resource, capacity, 1, used)

    def set_capacity(self, resource: int, capacity: int) -> ResourceState:
        """Top-up or recall: the next version."""
        held = self.accounts[resource]
        self.accounts[resource] = replace(held, capacity=capacity, version=held.version + 1)
        return self.accounts[resource]

    def set_buckets(self, group: int, buckets: int) -> None:
        """An epoch that is loaded nowhere, with so many."""
        value = self.epochs[group][-1].value if self.epochs[group] else 2**62
        self.epochs[group].append(Epoch(value + (1 << 24), "," * (buckets - 1)))

    def commit(self, group: int, epoch: int, item: AdmitItem) -> str:
        """granted, replayed, refused or stale."""
        if self.epochs[group][-1].value != epoch:
            return "stale"
        if item.request_id in self.grants[group]:
            return "replayed"
        if any(
            self.accounts[claimed].used + amount > self.accounts[claimed].capacity for claimed, amount in item.claims
        ):
            return "refused"
        for claimed, amount in item.claims:
            self.accounts[claimed] = replace(self.accounts[claimed], used=self.accounts[claimed].used + amount)
        self.grants[group].add(item.request_id)
        return "granted"

    async def current_epoch(self, group: int) -> Epoch | None:
        await asyncio.sleep(0)
        if self.away:
            raise ServiceError(Code.UNAVAILABLE, "LEDGER_UNAVAILABLE", "the ledger is away")
        return self.epochs[group][-1] if self.epochs[group] else None

    async def current_epochs(self, groups: Sequence[int]) -> Mapping[int, Epoch]:
        found = {group: await self.current_epoch(group) for group in groups}
        return {group: epoch for group, epoch in found.items() if epoch is not None}

    async def open_epoch(self, group: int, *, replacing: int | None, run_id: str) -> OpenedEpoch:
        await asyncio.sleep(0)
        held = self.epochs[group]
        if (held[-1].value if held else None) != replacing:
            found = OpenedEpoch(held[-1], won=False)
            await self.losers_return.wait()
            return found
        # A number near the top of its 39 bits, so that whoever rounds an epoch to a double fails.
        value = (((held[-1].value >> 24) + 1 if held else 2**38) << 24) | next(self._random)
        held.append(Epoch(value, run_id))
        return OpenedEpoch(held[-1], won=True)

    async def resources(self, group: int) -> Sequence[ResourceState]:
        await asyncio.sleep(0)
        if self.away:
            raise ServiceError(Code.UNAVAILABLE, "LEDGER_UNAVAILABLE", "the ledger is away")
        return list(self.accounts.values())

    async def has_grants(self, group: int) -> bool:
        await asyncio.sleep(0)
        return bool(self.grants[group])

    async def granted_requests(self, group: int, *, after: str, limit: int) -> Sequence[str]:
        await self.grants_readable.wait()
        ids = sorted(self.grants[group])
        return ids[bisect_right(ids, after) :][:limit]
