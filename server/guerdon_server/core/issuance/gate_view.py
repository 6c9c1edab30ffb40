"""The gate as the proof of the books looks at it."""

from __future__ import annotations

from collections.abc import Sequence

from guerdon_server.core.ledger.invariants import GateResource, GateState, OpenAdmission
from guerdon_server.core.stock.buckets import merged, tags
from guerdon_server.core.stock.model import GateState as StockState
from guerdon_server.core.stock.model import Tag
from guerdon_server.core.stock.redis.store import RedisGate

_PAGE_ITEMS = 500
_TRIES_MAX = 20


class RedisGateView:
    """`core.ledger.invariants.GateView`. Raises RedisUnavailable."""

    def __init__(self, store: RedisGate) -> None:
        self._store = store

    async def state(self, promotion_sid: int, buckets: int) -> GateState | None:
        """One moment of the gate: read again while admissions come and go between the pages (the last try counts)."""
        groups = tags(promotion_sid, buckets)
        for _ in range(_TRIES_MAX):
            before = await self._inspect(groups)
            if before.open_epoch is None:
                return None
            admissions: dict[int, OpenAdmission] = {}
            for group, run_id in zip(groups, before.run_id.split(","), strict=True):
                admissions.update(await self._admissions(group, before.open_epoch, run_id))
            after = await self._inspect(groups)
            if before == after and len(admissions) == before.open_admissions:
                break
        return _state(after, admissions)

    async def _inspect(self, groups: Sequence[Tag]) -> StockState:
        return merged([await self._store.inspect(group, resources=True) for group in groups])

    async def _admissions(self, group: Tag, epoch: int, run_id: str) -> dict[int, OpenAdmission]:
        found: dict[int, OpenAdmission] = {}
        cursor = "0"
        while True:
            page = await self._store.open_admissions(
                group, epoch=epoch, run_id=run_id, cursor=cursor, page_items=_PAGE_ITEMS
            )
            if page is None:
                return found
            for admission in page.admissions:
                found[admission.admission] = OpenAdmission(admission.request_id, dict(admission.claims))
            cursor = page.cursor
            if cursor == "0":
                return found


def _state(gate: StockState, admissions: dict[int, OpenAdmission]) -> GateState | None:
    if gate.open_epoch is None:
        return None
    return GateState(
        epoch=gate.open_epoch,
        run_id=gate.run_id,
        resources={r.resource: GateResource(r.capacity, r.used) for r in gate.resources},
        open_admissions=admissions,
    )
