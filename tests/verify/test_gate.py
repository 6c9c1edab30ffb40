"""The gate is compared with the ledger: exactly when it holds still, within what is in flight when it does not."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping

import pytest
import pytest_asyncio

from guerdon_server.core.ledger.invariants import Check, GateResource, GateState, OpenAdmission
from guerdon_server.core.ledger.postgres.invariants import verify_gate
from tests.ledger_reads.books import Books

EPOCH = (7 << 24) | 123
RUN = "run-1"


@dataclasses.dataclass
class Gate:
    """A gate in memory that shows one state after the other, and the last for ever."""

    promotion: int
    states: Iterator[GateState | None]

    async def state(self, promotion_sid: int, buckets: int) -> GateState | None:
        return next(self.states) if promotion_sid == self.promotion else None


@dataclasses.dataclass
class Setting:
    """What the ledger has: coupons 3 of 12, cashbacks 2 of 100, budget 1,600 of 10,000 issued."""

    books: Books
    coupons: int
    cashbacks: int
    budget: int

    def state(
        self,
        *,
        coupons_used: int = 3,
        coupons: int = 12,
        epoch: int = EPOCH,
        run_id: str = RUN,
        admissions: Mapping[int, OpenAdmission] | None = None,
        more: Mapping[int, GateResource] | None = None,
    ) -> GateState:
        resources = {
            self.coupons: GateResource(coupons, coupons_used),
            self.cashbacks: GateResource(100, 2),
            self.budget: GateResource(10_000, 1_600),
            **(more or {}),
        }
        return GateState(epoch, run_id, resources, admissions or {})

    def open(self, first: int, count: int) -> dict[int, OpenAdmission]:
        """Admissions of one coupon each that nobody has committed."""
        return {n: OpenAdmission(f"open-{n}", {self.coupons: 1}) for n in range(first, first + count)}

    async def check(self, states: Iterable[GateState | None], *, patience_seconds: float = 0.2) -> Check:
        last: list[GateState | None] = []

        def endless() -> Iterator[GateState | None]:
            for state in states:
                last[:] = [state]
                yield state
            yield from itertools.repeat(last[0])

        gate = Gate(self.books.promotions["spring"], endless())
        return await verify_gate(self.books.pool, gate, patience_seconds=patience_seconds)


@pytest_asyncio.fixture(loop_scope="session")
async def setting(books: Books) -> Setting:
    await books.pool.execute(
        "UPDATE guerdon.promotion SET gate_epoch = $1, gate_run_id = $2 WHERE promotion_id = 'spring'", EPOCH, RUN
    )
    spring = books.promotions["spring"]
    budget = books.budgets[spring, books.assets["USD/2"]][1]
    return Setting(books, books.prizes["coupon"].stock, books.prizes["cashback"].stock, budget)


async def test_a_gate_that_agrees_is_fine(setting: Setting) -> None:
    check = await setting.check([setting.state()])
    assert (check.ok, check.compared) == (True, 4)
    assert check.what == (
        "epochs and limits at the gate of 1 promotions (0 of them not loaded, so closed; 0 moving, compared within what"
        " is in flight)"
    )


async def test_what_open_admissions_hold_is_used_and_what_they_have_committed_is_not_counted_twice(
    setting: Setting,
) -> None:
    waiting = setting.open(1_000, 4)
    committed = await setting.books.pool.fetchval("SELECT admission FROM guerdon.request WHERE request_id = 'c3'")
    admissions = {**waiting, committed: OpenAdmission("c3", {setting.coupons: 1})}
    assert (await setting.check([setting.state(coupons_used=7, admissions=admissions)])).ok
    # Another admission of a request that was granted holds a unit of its own.
    twin = {**admissions, 2_000: OpenAdmission("c3", {setting.coupons: 1})}
    assert (await setting.check([setting.state(coupons_used=8, admissions=twin)])).ok


@pytest.mark.parametrize("used", [2, 4])
async def test_a_gate_that_has_let_in_more_or_less_is_found(setting: Setting, used: int) -> None:
    check = await setting.check([setting.state(coupons_used=used)])
    assert check.violations == (
        f"promotion spring, account {setting.coupons}: used at the gate {used}, issued 3 + admitted 0 = 3",
    )


async def test_another_capacity_another_epoch_and_a_limit_that_is_none_are_found(setting: Setting) -> None:
    name = f"promotion spring, account {setting.coupons}"
    check = await setting.check([setting.state(coupons=13)])
    assert check.violations == (f"{name}: capacity of the gate 13, of the ledger 12",)
    check = await setting.check([setting.state(epoch=EPOCH + 1)])
    assert check.violations == (f"promotion spring: epoch of the gate {EPOCH + 1}, of the ledger {EPOCH}",)
    unlimited = setting.books.prizes["coins"].stock
    check = await setting.check([setting.state(more={unlimited: GateResource(5, 2)})])
    assert check.violations == (
        f"promotion spring, account {unlimited}: capacity of the gate 5, none (or no limit) in the ledger",
    )


async def test_a_gate_that_is_not_loaded_is_closed(setting: Setting) -> None:
    for state in (None, setting.state(run_id="run-2", coupons_used=0)):
        check = await setting.check([state])
        assert (check.ok, check.compared) == (True, 0)
        assert "(1 of them not loaded, so closed" in check.what


async def test_a_difference_on_its_way_out_is_no_violation(setting: Setting) -> None:
    late = [setting.state(coupons=7)] * 2 + [setting.state(epoch=EPOCH - 1)] * 2
    check = await setting.check([*late, setting.state()], patience_seconds=60)
    assert (check.ok, check.compared) == (True, 4)


async def test_a_gate_that_keeps_moving_is_compared_within_what_is_in_flight(setting: Setting) -> None:
    def moving(used: int, in_flight: int) -> Iterator[GateState]:
        for step in itertools.count():
            yield setting.state(
                coupons_used=used + in_flight + step % 2, admissions=setting.open(step, in_flight + step % 2)
            )

    check = await setting.check(moving(used=3, in_flight=2))
    assert (check.ok, check.compared) == (True, 4)
    assert "1 moving" in check.what
    check = await setting.check(moving(used=4, in_flight=2))
    assert check.violation_count == 1
    assert "issued 3, but settled at the gate 4 before" in check.violations[0]
    check = await setting.check(moving(used=0, in_flight=1))
    assert check.violation_count == 1
    assert "issued 3, but settled at the gate 0 before" in check.violations[0]
