"""Waiting for a state with a deadline, and asking the gate for it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

from guerdon_server.core.stock.model import AdmitItem, SettleCode, Settlement
from guerdon_server.core.stock.service import Gate
from tests.stock.conftest import GROUP

_DEADLINE_SECONDS = 20


async def eventually(condition: Callable[[], bool | Awaitable[bool]], *, poll_seconds: float = 0.002) -> None:
    """Returns when the condition holds; TimeoutError if it never does."""
    async with asyncio.timeout(_DEADLINE_SECONDS):
        while True:
            outcome = condition()
            if await outcome if inspect.isawaitable(outcome) else outcome:
                return
            await asyncio.sleep(poll_seconds)


async def settled(gate: Gate, item: AdmitItem, code: SettleCode) -> None:
    """Settle one open admission and wait until that has arrived."""
    before = gate.counts.settled
    gate.settle(GROUP, [Settlement(item.admission, item.request_id, code)])
    await eventually(lambda: gate.counts.settled == before + 1)


async def used(gate: Gate, resource: int) -> int:
    """What the gate holds as used of a resource."""
    state = await gate.inspect(GROUP)
    return next(held.used for held in state.resources if held.resource == resource)
