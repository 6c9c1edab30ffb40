"""Background jobs that keep gate and ledger true to each other: one process does them at a time, under a lease."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from guerdon_server.core.issuance.pipeline import AdmissionIds
from guerdon_server.core.ledger.model import RequestState
from guerdon_server.core.ledger.ports import Ledger
from guerdon_server.core.stock.model import OpenAdmission, OpenAdmissions, Reconciled, SettleCode, Settlement
from guerdon_server.platform.errors import ServiceError
from guerdon_server.platform.postgres import is_unavailable

_log = logging.getLogger(__name__)
_FENCE_ITEMS_MAX = 500


class SweptGate(Protocol):
    """The part of the gate that the jobs need."""

    async def open_admissions(self, group: int, *, limit: int) -> OpenAdmissions: ...
    def settle(self, group: int, settlements: Sequence[Settlement]) -> None: ...
    async def reconcile(self, group: int) -> Reconciled: ...


class LivingWorkers(Protocol):
    """Who is alive, and whether this process is the one to do a job."""

    async def living(self) -> set[int]: ...
    async def lead(self, job: str, incarnation: int) -> bool: ...
    async def running_promotions(self) -> list[int]: ...


@dataclass(slots=True)
class SweepCounts:
    """For metrics. `open_admissions`, `oldest_ms`: at the last look, over all running promotions.

    `rounds`: by how they ended: done, partial (a promotion could not be swept), failed (none could).
    """

    leading: bool = False
    open_admissions: int = 0
    oldest_ms: int = 0
    fenced_total: int = 0
    found_granted_total: int = 0
    reconciled: dict[str, int] = field(default_factory=dict)
    rounds: Counter[str] = field(default_factory=Counter)


class Sweeper:
    """Fences and gives back what nobody will settle any more, and compares the gate with the ledger.

    Whose worker is dead is fenced at once; whose worker lives, when it is old: age is only a hint to look, the fence is
    the safety. Fencing a slow but living one is harmless: its commit is refused and it starts afresh.
    """

    def __init__(
        self, *, gate: SweptGate, ledger: Ledger, workers: LivingWorkers, incarnation: int, age_ms_max: int
    ) -> None:
        self._gate = gate
        self._ledger = ledger
        self._workers = workers
        self._incarnation = incarnation
        self._age_ms_max = age_ms_max
        self.counts = SweepCounts()

    async def run_once(self) -> None:
        """One round over all running promotions, if this process leads."""
        self.counts.leading = await self._workers.lead("sweep", self._incarnation)
        if not self.counts.leading:
            self.counts.open_admissions = self.counts.oldest_ms = 0
            return
        open_admissions = oldest_ms = 0
        ended = "done"
        for group in await self._workers.running_promotions():
            try:
                found = await self._sweep(group)
            except ServiceError as error:  # the others are not to wait for this one
                _log.warning("a promotion could not be swept", extra={"group": group, "why": error.message})
                ended = "partial"
                continue
            open_admissions += found.total
            oldest_ms = max([oldest_ms, *(admission.age_ms for admission in found.oldest)])
        self.counts.open_admissions, self.counts.oldest_ms = open_admissions, oldest_ms
        self.counts.rounds[ended] += 1

    async def _sweep(self, group: int) -> OpenAdmissions:
        found = await self._gate.open_admissions(group, limit=_FENCE_ITEMS_MAX)
        await self._fence(group, await self._abandoned(found.oldest))
        result = (await self._gate.reconcile(group)).value
        self.counts.reconciled[result] = self.counts.reconciled.get(result, 0) + 1
        return found

    async def _abandoned(self, admissions: Sequence[OpenAdmission]) -> list[OpenAdmission]:
        if not admissions:
            return []
        # Read after the admissions: whoever made one had registered before.
        living = {AdmissionIds.slot_of(incarnation) for incarnation in await self._workers.living()}
        return [
            admission
            for admission in admissions
            if admission.age_ms > self._age_ms_max or AdmissionIds.slot(admission.admission) not in living
        ]

    async def _fence(self, group: int, admissions: list[OpenAdmission]) -> None:
        if not admissions:
            return
        found = await self._ledger.fence([(group, a.request_id, a.admission) for a in admissions])
        settlements = []
        for admission, (state, known) in zip(admissions, found, strict=True):
            code = SettleCode.GIVEN_BACK
            if state is RequestState.GRANTED:
                code = SettleCode.GRANTED if known == admission.admission else SettleCode.REPLAYED
                self.counts.found_granted_total += 1
            settlements.append(Settlement(admission.admission, admission.request_id, code))
        self._gate.settle(group, settlements)
        self.counts.fenced_total += len(admissions)
        _log.info("admissions that nobody settled were fenced", extra={"group": group, "count": len(admissions)})


async def keep_sweeping(sweeper: Sweeper, interval_seconds: float) -> None:
    """Run for ever; a failure is logged and tried again."""
    while True:
        try:
            await sweeper.run_once()
        except ServiceError as error:
            sweeper.counts.rounds["failed"] += 1
            _log.warning("sweeping has to wait", extra={"why": error.message})
        except Exception as error:
            sweeper.counts.rounds["failed"] += 1
            if isinstance(error, OSError) or is_unavailable(error):  # every second while PostgreSQL is away
                _log.warning("sweeping has to wait", extra={"why": str(error)})
            else:
                _log.exception("sweeping failed")
        await asyncio.sleep(interval_seconds)
