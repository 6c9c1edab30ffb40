"""Entrances for operators: create, change, list."""

from __future__ import annotations

from guerdon_server.core.entrance.model import Entrance, EntranceUpdate, NewEntrance
from guerdon_server.core.entrance.postgres import store
from guerdon_server.core.ledger.postgres.operations import Caller, check_etag, claim, mutation
from guerdon_server.platform.errors import Code, ServiceError
from guerdon_server.platform.postgres import Pool


class EntranceService:
    """Every mutation is one transaction, idempotent by its request id, and committed when it returns.

    Requests have been validated field by field; what needs the stored state is checked here. Raises ServiceError.
    """

    def __init__(self, *, reads: Pool, writes: Pool) -> None:
        self._reads = reads
        self._writes = writes

    async def create(self, new: NewEntrance, caller: Caller) -> Entrance:
        """ENTRANCE_EXISTS."""
        async with mutation(self._writes) as session:
            if await claim(session, "CreateEntrance", new, caller) and not await store.insert(session, new):
                raise ServiceError(
                    Code.ALREADY_EXISTS,
                    "ENTRANCE_EXISTS",
                    f"There is an entrance {new.entrance_id} already. Choose another id, or update it.",
                    metadata={"entrance_id": new.entrance_id},
                )
            return await store.get(session, new.entrance_id)

    async def get(self, entrance_id: str) -> Entrance:
        """ENTRANCE_NOT_FOUND."""
        async with self._reads.acquire() as session:
            return await store.get(session, entrance_id)

    async def page(self, *, after: str, limit: int) -> list[Entrance]:
        """Up to `limit` by id, behind the id `after`."""
        async with self._reads.acquire() as session:
            return await store.page(session, after, limit)

    async def update(self, update: EntranceUpdate, caller: Caller) -> Entrance:
        """ENTRANCE_NOT_FOUND; ETAG_MISMATCH."""
        async with mutation(self._writes) as session:
            if await claim(session, "UpdateEntrance", update, caller):
                entrance = await store.lock(session, update.entrance_id)
                check_etag(update.etag, entrance.etag, entrance_id=update.entrance_id)
                await store.update(session, update.entrance_id, update.display_name)
            return await store.get(session, update.entrance_id)
