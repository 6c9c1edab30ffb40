"""The bounds of the gate."""

from __future__ import annotations

from dataclasses import dataclass

from guerdon_server.core.stock.redis.store import ITEMS_MAX
from guerdon_server.platform.batching import ENOUGH_ITEMS


@dataclass(frozen=True, slots=True)
class GateSettings:
    """Every bound of the gate. Per group: items_max a script call, in_flight_max calls at once (the second one with
    enough_items only), queue_items_max and queue_seconds_max.

    attempts_max: how often a batch is tried when the group turns out to be closed. adopt_seconds_max: how long a
    rebuild by another worker is waited for before this one takes over; adopt_poll_seconds: how often to look.
    """

    items_max: int = ITEMS_MAX
    in_flight_max: int = 2
    enough_items: int = ENOUGH_ITEMS
    queue_items_max: int = 20_000
    queue_seconds_max: float = 0.25
    attempts_max: int = 4
    adopt_seconds_max: float = 1.0
    adopt_poll_seconds: float = 0.02
    settle_items_max: int = ITEMS_MAX
    settle_queue_items_max: int = 100_000
    settle_gather_seconds: float = 0.003
    settle_pause_seconds_min: float = 0.05
    settle_pause_seconds_max: float = 2.0
    settled_seconds_max: float = 0.5
    close_seconds_max: float = 5.0
    backfill_page_items: int = 1000
    backfill_takeover_seconds: float = 5.0
    scan_page_items: int = 500
    scan_pages_max: int = 2000
