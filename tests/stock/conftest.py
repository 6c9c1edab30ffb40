"""A gate on the session's Valkey, with a ledger in memory."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from guerdon_server.core.stock.model import AdmitItem
from guerdon_server.core.stock.redis.store import RedisGate
from guerdon_server.core.stock.service import Gate
from guerdon_server.core.stock.settings import GateSettings
from guerdon_server.platform.redis import Client
from tests.stock.ledger import MemoryLedger

GROUP = 1
STOCK, BUDGET = 11, 12
# Short, so that a test which waits for another worker's rebuild does not wait long.
SETTINGS = GateSettings(adopt_seconds_max=0.2, adopt_poll_seconds=0.005, settle_pause_seconds_min=0.01)
_admissions = itertools.count(2**62 + 1)  # beyond 2^53, so that whoever rounds an admission fails


def item(request_id: str, *claims: tuple[int, int], limit: tuple[str, int] = ("-", 0)) -> AdmitItem:
    """An item with an admission of its own; without claims it takes 1 of STOCK."""
    return AdmitItem(next(_admissions), request_id, limit[0], limit[1], claims or ((STOCK, 1),))


@pytest.fixture
def ledger() -> MemoryLedger:
    """10 of STOCK, 1000 of BUDGET."""
    ledger = MemoryLedger()
    ledger.add(STOCK, 10)
    ledger.add(BUDGET, 1000)
    return ledger


@pytest.fixture
def store(redis_client: Client) -> RedisGate:
    return RedisGate(redis_client)


GateFactory = Callable[[], Gate]


@pytest_asyncio.fixture(loop_scope="session")
async def new_gate(store: RedisGate, ledger: MemoryLedger) -> AsyncIterator[GateFactory]:
    """Makes workers' gates on the same Redis and ledger; closed afterwards."""
    gates: list[Gate] = []

    def make() -> Gate:
        gates.append(Gate(store, ledger, settings=SETTINGS))
        return gates[-1]

    yield make
    for gate in gates:
        await gate.aclose()


@pytest.fixture
def gate(new_gate: GateFactory) -> Gate:
    return new_gate()
