"""Random histories, side by side with a plain model of the gate."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from guerdon_server.core.stock.model import EXACT_MAX, AdmitCode, AdmitItem, Answer, SettleCode, Settlement
from guerdon_server.core.stock.redis.store import RedisGate
from guerdon_server.core.stock.service import Gate
from tests.stock.conftest import GROUP, item
from tests.stock.ledger import MemoryLedger

_CAPACITIES = {1: 7, 2: 40, 3: 10**8, 4: EXACT_MAX}


@dataclass
class Model:
    """What the gate should hold: dicts and integers."""

    used: dict[int, int] = field(default_factory=lambda: dict.fromkeys(_CAPACITIES, 0))
    limits: dict[str, int] = field(default_factory=dict)
    markers: dict[str, int | str] = field(default_factory=dict)
    open: dict[int, AdmitItem] = field(default_factory=dict)

    def admit(self, one: AdmitItem) -> tuple[object, ...]:
        held = self.markers.get(one.request_id)
        if held == one.admission:
            return (AdmitCode.ADMITTED,)
        if held == "g":
            return (AdmitCode.GRANTED_BEFORE,)
        if held is not None:
            return AdmitCode.PENDING, held
        count = self.limits.get(one.limit_key, 0)
        if one.limit_key != "-" and count >= one.limit_max:
            return AdmitCode.LIMIT_REACHED, count
        for resource, amount in one.claims:
            left = _CAPACITIES[resource] - self.used[resource]
            if amount > left:
                return AdmitCode.REFUSED, resource, left
        for resource, amount in one.claims:
            self.used[resource] += amount
        if one.limit_key != "-":
            self.limits[one.limit_key] = count + 1
        self.markers[one.request_id] = one.admission
        self.open[one.admission] = one
        return (AdmitCode.ADMITTED,)

    def settle(self, settlement: Settlement) -> bool:
        one = self.open.pop(settlement.admission, None)
        if one is None:
            return False
        if settlement.code is not SettleCode.GIVEN_BACK:
            self.markers[one.request_id] = "g"
        elif self.markers.get(one.request_id) == one.admission:
            del self.markers[one.request_id]
        if settlement.code is not SettleCode.GRANTED:
            for resource, amount in one.claims:
                self.used[resource] -= amount
            if one.limit_key != "-":
                self.limits[one.limit_key] = max(self.limits[one.limit_key] - 1, settlement.observed)
        return True


def _observed(answer: Answer) -> tuple[object, ...]:
    match answer.code:
        case AdmitCode.PENDING:
            return answer.code, answer.twin
        case AdmitCode.LIMIT_REACHED:
            return answer.code, answer.observed
        case AdmitCode.REFUSED:
            return answer.code, answer.resource, answer.remaining
        case code:
            return (code,)


def _random_item(chance: random.Random, seen: list[AdmitItem]) -> AdmitItem:
    if seen and chance.random() < 0.1:
        return chance.choice(seen)  # the driver repeats a call, perhaps after it was settled
    resources = chance.sample(sorted(_CAPACITIES), chance.randint(0, 3))
    claims = tuple((one, chance.choice((1, 2, 3, _CAPACITIES[one] // chance.randint(2, 7)))) for one in resources)
    limit = (f"p:u{chance.randint(1, 6)}", chance.randint(1, 3)) if chance.random() < 0.5 else ("-", 0)
    made = item(f"r{chance.randint(1, 60)}", limit=limit)
    return AdmitItem(made.admission, made.request_id, made.limit_key, made.limit_max, claims)


@pytest.mark.parametrize("seed", range(12))
async def test_any_history_agrees_with_the_model(gate: Gate, store: RedisGate, ledger: MemoryLedger, seed: int) -> None:
    chance = random.Random(seed)
    ledger.accounts.clear()
    for resource, capacity in _CAPACITIES.items():
        ledger.add(resource, capacity)
    await gate.is_pending(GROUP, "none")  # opens it
    model = Model()
    seen: list[AdmitItem] = []
    for _ in range(60):
        if chance.random() < 0.6:
            batch = [_random_item(chance, seen) for _ in range(chance.randint(1, 12))]
            expected = [model.admit(one) for one in batch]
            answers = (await gate.admit(GROUP, batch)).answers
            assert [_observed(answer) for answer in answers] == expected
            seen = (seen + batch)[-40:]
        elif model.open:
            ids = chance.choices([*model.open, 999], k=chance.randint(1, 6))
            batch_settled = [
                Settlement(one, "", chance.choice(list(SettleCode)), chance.choice((0, 0, 2)))
                for one in dict.fromkeys(ids)
            ]
            epoch = ledger.epochs[GROUP][-1]
            settled = await store.settle(GROUP, epoch=epoch.value, run_id=epoch.run_id, settlements=batch_settled)
            assert settled == sum(_settle_all(model, batch_settled))
        state = await gate.inspect(GROUP)
        assert {held.resource: held.used for held in state.resources} == model.used
        assert state.open_admissions == len(model.open)


def _settle_all(model: Model, settlements: list[Settlement]) -> list[bool]:
    """One script call: of one limit key, all that goes back goes first, then the highest observed count holds."""
    floors: dict[str, int] = {}
    outcomes = []
    for settlement in settlements:
        one = model.open.get(settlement.admission)
        if one is not None and settlement.code is SettleCode.GIVEN_BACK:
            floors[one.limit_key] = max(floors.get(one.limit_key, 0), settlement.observed)
        outcomes.append(model.settle(Settlement(settlement.admission, settlement.request_id, settlement.code)))
    for limit_key, floor in floors.items():
        if limit_key != "-":
            model.limits[limit_key] = max(model.limits[limit_key], floor)
    return outcomes
