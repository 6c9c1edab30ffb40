"""Entrances in PostgreSQL. Functions take a session and never commit."""

from __future__ import annotations

from guerdon_server.core.entrance.model import Entrance, NewEntrance
from guerdon_server.core.ledger.postgres.statements import Session, load
from guerdon_server.platform.errors import not_found

_SQL = load(__package__)


async def get(session: Session, entrance_id: str) -> Entrance:
    """Raises NOT_FOUND / ENTRANCE_NOT_FOUND."""
    row = await session.fetchrow(_SQL["fetch"], entrance_id)
    if row is None:
        raise not_found(
            "ENTRANCE_NOT_FOUND", f"There is no entrance {entrance_id}. Create it first.", entrance_id=entrance_id
        )
    return Entrance(*row)


async def lock(session: Session, entrance_id: str) -> Entrance:
    """Keeps other updates out to the end of the transaction, and reads what then is."""
    await session.execute(_SQL["lock"], entrance_id)
    return await get(session, entrance_id)


async def page(session: Session, after: str, limit: int) -> list[Entrance]:
    """By id, behind `after`."""
    return [Entrance(*row) for row in await session.fetch(_SQL["page"], after, limit)]


async def insert(session: Session, new: NewEntrance) -> bool:
    """False if the id is taken."""
    return await session.fetchval(_SQL["insert"], new.entrance_id, new.display_name) is not None


async def update(session: Session, entrance_id: str, display_name: str) -> None:
    """Draws a new version."""
    await session.execute(_SQL["update"], entrance_id, display_name)
