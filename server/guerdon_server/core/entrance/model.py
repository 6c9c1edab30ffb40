"""Entrances: the places where promotions are shown and rewards are asked for. Pure."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from guerdon_server.core.ledger.model import EntranceSid


@dataclass(frozen=True, slots=True)
class Entrance:
    """One entrance."""

    sid: EntranceSid
    entrance_id: str
    display_name: str
    version: int
    created_at: dt.datetime
    updated_at: dt.datetime

    @property
    def etag(self) -> str:
        """Changes with every update."""
        return str(self.version)


# What callers ask for. Field names are those of the wire, because a reused request id names the one that differs.


@dataclass(frozen=True, slots=True)
class NewEntrance:
    entrance_id: str
    display_name: str


@dataclass(frozen=True, slots=True)
class EntranceUpdate:
    """The fields that `update_mask` names take the values here."""

    entrance_id: str
    etag: str
    update_mask: tuple[str, ...]
    display_name: str = ""
