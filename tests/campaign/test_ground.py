"""What faults share."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest

from tests.campaign import faults
from tests.campaign.faults import Ground
from tests.campaign.promises import Findings
from tests.cluster.servers import ServerSlot
from tests.cluster.waiting import NotInForce


class Refusing:
    """Of a server: the first starts fail."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.offsets: list[float] = []

    async def start(self, *, clock_offset_seconds: float = 0) -> None:
        self.offsets.append(clock_offset_seconds)
        if len(self.offsets) <= self.failures:
            raise NotInForce("the sessions of its start were ended by another fault")


def ground() -> Ground:
    nothing = cast("Any", None)
    return Ground(nothing, nothing, (), nothing, nothing, Findings(), random.Random(1))


async def test_a_server_that_can_not_start_under_another_fault_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(faults, "_START_PAUSE_SECONDS", 0)
    g, slot = ground(), Refusing(2)
    await g.serves(cast("ServerSlot", slot), clock_offset_seconds=-300)
    assert slot.offsets == [-300] * 3
    assert g.notes == ["served at start 3"]


async def test_one_that_never_starts_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_START_PAUSE_SECONDS", 0)
    with pytest.raises(NotInForce):
        await ground().serves(cast("ServerSlot", Refusing(1_000)))
