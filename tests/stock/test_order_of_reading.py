"""Gate and ledger are two systems: in which order they are read decides whether what happens in between is seen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from guerdon_server.core.stock.model import AdmitCode, Reconciled, ResourceState, SettleCode
from guerdon_server.core.stock.ports import OpenedEpoch
from guerdon_server.core.stock.redis.store import RedisGate
from guerdon_server.core.stock.service import Gate
from tests.stock.conftest import GROUP, SETTINGS, STOCK, item
from tests.stock.ledger import MemoryLedger
from tests.stock.waiting import settled, used


class Interrupted(MemoryLedger):
    """Something happens just before, or just after, its accounts are read for the next time."""

    def __init__(self) -> None:
        super().__init__()
        self.before_reading: Callable[[], Awaitable[None]] | None = None
        self.after_reading: Callable[[], Awaitable[None]] | None = None
        self.last_commits: Callable[[], None] | None = None

    async def resources(self, group: int) -> Sequence[ResourceState]:
        if happens := self.before_reading:
            self.before_reading = None
            await happens()
        read = await super().resources(group)
        if happens := self.after_reading:
            self.after_reading = None
            await happens()
        return read

    async def open_epoch(self, group: int, *, replacing: int | None, run_id: str) -> OpenedEpoch:
        if self.last_commits:  # it waits for commits under way: they are over when it returns
            self.last_commits()
        return await super().open_epoch(group, replacing=replacing, run_id=run_id)


def interrupted(store: RedisGate) -> tuple[Interrupted, Gate]:
    ledger = Interrupted()
    ledger.add(STOCK, 10)
    return ledger, Gate(store, ledger, settings=SETTINGS)


async def test_a_rebuild_starts_from_what_the_ledger_held_when_the_epoch_was_opened(store: RedisGate) -> None:
    ledger, gate = interrupted(store)

    def commits_under_way() -> None:
        ledger.add(STOCK, 10, used=4)
        ledger.grants[GROUP].add("late")

    ledger.last_commits = commits_under_way
    ledger.grants_readable.clear()  # the backfill comes later
    (answer,) = (await gate.admit(GROUP, [item("a", (STOCK, 7))])).answers
    assert (answer.code, answer.remaining) == (AdmitCode.REFUSED, 6)
    assert not answer.sure, "there is a grant that its markers do not know yet"
    ledger.grants_readable.set()
    await gate.aclose()


async def test_a_grant_while_the_reconciler_reads_is_no_drift(store: RedisGate) -> None:
    ledger, gate = interrupted(store)

    async def grants() -> None:
        one = item(f"r{len(ledger.grants[GROUP])}")
        admitted = await gate.admit(GROUP, [one])
        assert ledger.commit(GROUP, admitted.epoch, one) == "granted"
        await settled(gate, one, SettleCode.GRANTED)

    await grants()
    ledger.before_reading = grants
    assert await gate.reconcile(GROUP) is Reconciled.EQUAL
    ledger.after_reading = grants
    assert await gate.reconcile(GROUP) is Reconciled.EQUAL
    assert (await used(gate, STOCK), gate.counts.drifts, len(ledger.epochs[GROUP])) == (3, 0, 1)
    await gate.aclose()
