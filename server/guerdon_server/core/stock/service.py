"""The gate: refuses early, at the speed of Redis, what the ledger would refuse later. It grants nothing."""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from guerdon_server.core.stock.model import (
    AdmitCode,
    AdmitItem,
    Admitted,
    Answer,
    Epoch,
    GateState,
    GateUnavailable,
    OpenAdmission,
    OpenAdmissions,
    Reconciled,
    ResourceState,
    SettleCode,
    Settlement,
    Status,
)
from guerdon_server.core.stock.ports import GateSource
from guerdon_server.core.stock.redis.store import ITEMS_MAX, RedisGate
from guerdon_server.core.stock.settling import SettleQueue
from guerdon_server.platform.batching import ENOUGH_ITEMS, Coalescer
from guerdon_server.platform.errors import ServiceError
from guerdon_server.platform.redis import RedisUnavailable

_logger = logging.getLogger(__name__)


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


@dataclass(slots=True)
class GateCounts:
    """What happened, for metrics; only ever grows."""

    opened: int = 0  # epochs that this worker opened
    adopted: int = 0  # epochs of other workers that this one went on with
    closed: int = 0  # calls that found the group closed
    unavailable: int = 0  # batches that Redis did not answer
    dropped_answers: int = 0  # admitted for a caller that had gone; given back
    drifts: int = 0  # gate and ledger disagreed
    settled: int = 0  # admissions that were open and were settled
    settled_in_vain: int = 0  # settlements that found the group closed, so that there was nothing to settle
    backfilled: int = 0  # requests that were marked granted after a rebuild


class _Group:
    """One group as this worker knows it. epoch: what it admits under, None = to be opened before the next call.

    used_epoch: the last one that it admitted under or opened itself, also after it was found closed.
    """

    __slots__ = ("backfill", "coalescer", "epoch", "opening", "used_epoch")

    def __init__(self) -> None:
        self.coalescer: Coalescer[AdmitItem, Answer]
        self.epoch: Epoch | None = None
        self.used_epoch: int | None = None
        self.opening: asyncio.Task[Epoch] | None = None
        self.backfill: asyncio.Task[None] | None = None


class Gate:
    """Admits requests of gate groups against limits and resources, and keeps Redis true to the ledger.

    One instance per event loop. For metrics: `counts`, `settling`, `queued_items()`, `in_flight_batches()`, and
    `on_batch(items, seconds)`, called after each batch of items.
    """

    def __init__(
        self,
        store: RedisGate,
        source: GateSource,
        *,
        settings: GateSettings = GateSettings(),
        on_batch: Callable[[int, float], None] | None = None,
        on_settled: Callable[[int, float], None] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.counts = GateCounts()
        self.settling = SettleQueue(
            self._send_settlements,
            batch_items_max=settings.settle_items_max,
            queue_items_max=settings.settle_queue_items_max,
            gather_seconds=settings.settle_gather_seconds,
            pause_seconds_min=settings.settle_pause_seconds_min,
            pause_seconds_max=settings.settle_pause_seconds_max,
        )
        self._store = store
        self._source = source
        self._settings = settings
        self._on_batch = on_batch
        self._on_settled = on_settled
        self._jitter = jitter
        self._groups: dict[int, _Group] = {}
        self._closed = False

    # --- the hot path ---------------------------------------------------------------------------------------------

    async def admit(self, group: int, items: Sequence[AdmitItem]) -> Admitted:
        """Answer each of 1..`items_max` items, in order, under one epoch; joined with other callers' into one script.

        Raises GateUnavailable (nothing that was taken stays taken: it is given back, since it was never sent to the
        commit) and QueueFull. A caller that is cancelled while it waits owns nothing either.
        """
        for item in items:  # here: a malformed item must not fail the others of its batch
            assert item.is_sound(), item
        known = self._groups.get(group) or self._know(group)
        future = known.coalescer.submit(items)
        try:
            answers = await future
        except asyncio.CancelledError:
            # Cancelled between the answer and our waking up: the coalescer has handed it out already.
            if future.done() and not future.cancelled() and future.exception() is None:
                self._give_back_dropped(group, items, future.result())
            raise
        return Admitted(answers[0].epoch, answers)

    async def is_pending(self, group: int, request_id: str) -> bool:
        """Whether an admission of the request is open. Raises GateUnavailable."""
        known = self._know(group)
        try:
            epoch = known.epoch or await self._open(group, known)
            return await self._store.is_marked_open(group, epoch=epoch.value, request_id=request_id)
        except RedisUnavailable as error:
            raise GateUnavailable(str(error)) from error

    def settle(self, group: int, settlements: Iterable[Settlement]) -> None:
        """Report what became of admissions; at once and without failing, sent in the background."""
        self.settling.put(group, settlements)

    async def settled(self) -> None:
        """Wait, within limits, until what was reported before this call has arrived in Redis."""
        await self.settling.sent(self._settings.settled_seconds_max)

    async def _admit_batch(self, group: int, known: _Group, items: list[AdmitItem]) -> Sequence[Answer]:
        sent = reloaded = False
        try:
            for _ in range(self._settings.attempts_max):
                epoch = known.epoch or await self._open(group, known)
                sent = True
                answers = await self._store.admit(group, epoch=epoch.value, run_id=epoch.run_id, items=items)
                if answers is None:
                    self._found_closed(known, epoch.value)
                elif reloaded or not any(answer.code is AdmitCode.UNKNOWN_RESOURCE for answer in answers):
                    return answers
                else:  # a new prize: bring it in, and repeat the whole batch, which is idempotent
                    await self._add_resources(group, epoch)
                    reloaded = True
            raise GateUnavailable(f"closed {self._settings.attempts_max} times in a row")
        except BaseException as error:
            if sent:
                # The script may have run, or may run yet: whatever it took is never sent to the commit.
                self.settle(group, [Settlement(item.admission, SettleCode.GIVEN_BACK) for item in items])
            if isinstance(error, RedisUnavailable):
                self.counts.unavailable += 1
                raise GateUnavailable(str(error)) from error
            raise

    def _give_back_dropped(self, group: int, items: Sequence[AdmitItem], answers: Sequence[Answer]) -> None:
        """Nobody waits for these answers any more, so nobody will send them to the commit."""
        given_back = [
            Settlement(item.admission, SettleCode.GIVEN_BACK)
            for item, answer in zip(items, answers, strict=True)
            if answer.code is AdmitCode.ADMITTED
        ]
        self.counts.dropped_answers += len(given_back)
        self.settle(group, given_back)

    async def _send_settlements(self, group: int, settlements: Sequence[Settlement]) -> None:
        known = self._groups.get(group)
        epoch = known.epoch if known else None
        settled = None
        if epoch is not None:
            started = time.perf_counter()
            settled = await self._store.settle(group, epoch=epoch.value, run_id=epoch.run_id, settlements=settlements)
            if self._on_settled is not None:
                self._on_settled(len(settlements), time.perf_counter() - started)
        if settled is None:
            # Admissions live and die with their epoch, so of a closed one there is nothing left to settle.
            self.counts.settled_in_vain += len(settlements)
        else:
            self.counts.settled += settled

    # --- what others tell the gate --------------------------------------------------------------------------------

    def epoch_refused(self, group: int, epoch: int) -> None:
        """The commit answered STALE_EPOCH to an admission under `epoch`: look again before the next call."""
        known = self._groups.get(group)
        if known is not None:
            self._found_closed(known, epoch)

    async def set_capacity(self, group: int, *, resource: int, capacity: int, version: int) -> None:
        """Tell the gate what the ledger says of a resource's capacity; an older version changes nothing.

        Also when this worker has not admitted to the group, because others have. Best effort: what doesn't arrive is
        pushed by the next reconciliation. Raises nothing that a retry could mend.
        """
        known = self._groups.get(group)
        state = ResourceState(resource, capacity, version, 0)
        try:
            epoch = (known.epoch if known else None) or await self._source.current_epoch(group)
            if epoch is None:
                return
            await self._store.set_capacity(group, epoch=epoch.value, run_id=epoch.run_id, resources=[state], add=False)
        except (RedisUnavailable, ServiceError):
            _logger.warning("capacity not pushed, the reconciler will", extra={"group": group, "resource": resource})

    async def _add_resources(self, group: int, epoch: Epoch) -> None:
        """Bring in what the ledger has and the gate has not; read after the epoch was opened (set_capacity.lua)."""
        states = await self._source.resources(group)
        await self._store.set_capacity(group, epoch=epoch.value, run_id=epoch.run_id, resources=states, add=True)

    async def forget(self, group: int) -> None:
        """Delete the group from Redis and from here, when its promotion has ended. Raises GateUnavailable."""
        known = self._groups.pop(group, None)
        if known is not None:
            await known.coalescer.aclose()
            if known.backfill is not None:
                known.backfill.cancel()
        try:
            await self._store.forget(group)
        except RedisUnavailable as error:
            raise GateUnavailable(str(error)) from error

    # --- what others ask ------------------------------------------------------------------------------------------

    def groups(self) -> Sequence[int]:
        """The groups that this worker knows."""
        return list(self._groups)

    def queued_items(self) -> int:
        """How many items wait to be sent to Redis, over all groups."""
        return sum(known.coalescer.queued_items for known in self._groups.values())

    def in_flight_batches(self) -> int:
        """How many admitting batches are under way, over all groups."""
        return sum(known.coalescer.in_flight for known in self._groups.values())

    async def inspect(self, group: int) -> GateState:
        """All that Redis holds of the group, to be compared with the ledger. Raises GateUnavailable."""
        try:
            return await self._store.inspect(group, resources=True)
        except RedisUnavailable as error:
            raise GateUnavailable(str(error)) from error

    async def open_admissions(self, group: int, *, limit: int) -> OpenAdmissions:
        """The `limit` oldest admissions that are open, and how many there are: none where the group is closed.

        Reads page by page, so admissions may come and go meanwhile; one that is open throughout is seen. Raises
        GateUnavailable.
        """
        known = self._know(group)
        try:
            epoch = await self._if_open(group, known)
            if epoch is None:
                return OpenAdmissions(0, 0, [])
            seen: dict[int, OpenAdmission] = {}
            cursor, total = "0", 0
            for _ in range(self._settings.scan_pages_max):
                page = await self._store.open_admissions(
                    group,
                    epoch=epoch.value,
                    run_id=epoch.run_id,
                    cursor=cursor,
                    page_items=self._settings.scan_page_items,
                )
                if page is None:
                    self._found_closed(known, epoch.value)
                    return OpenAdmissions(epoch.value, 0, [])
                cursor, total = page.cursor, page.total
                seen.update((admission.admission, admission) for admission in page.admissions)
                if len(seen) > 2 * limit:
                    seen = _oldest(seen, limit)
                if cursor == "0":
                    break
        except RedisUnavailable as error:
            raise GateUnavailable(str(error)) from error
        return OpenAdmissions(epoch.value, total, list(_oldest(seen, limit).values()))

    async def reconcile(self, group: int) -> Reconciled:
        """Compare with the ledger and mend: push newer capacities, open a new epoch if the gate is wrong.

        Also takes over a backfill that stands still. A group that is closed is left to the next request for it. Meant
        to be called every second by one worker. Raises GateUnavailable.
        """
        known = self._know(group)
        try:
            epoch = await self._if_open(group, known)
            return Reconciled.CLOSED if epoch is None else await self._compare(group, known, epoch)
        except RedisUnavailable as error:
            raise GateUnavailable(str(error)) from error

    async def _compare(self, group: int, known: _Group, epoch: Epoch) -> Reconciled:
        # The order is what makes it exact: all that the ledger had used was admitted before the gate is looked at,
        # and if nothing is open then, all that was ever admitted is in the ledger when it is read again.
        before = {state.resource: state for state in await self._source.resources(group)}
        gate = await self._store.inspect(group, resources=True)
        current = await self._source.current_epoch(group)
        if current != epoch or gate.open_epoch != epoch.value or gate.run_id != epoch.run_id:
            self._found_closed(known, epoch.value)
            return Reconciled.CLOSED
        self._take_over_backfill(group, known, epoch, gate)
        after = before if gate.open_admissions else {s.resource: s for s in await self._source.resources(group)}
        newer = []
        for held in gate.resources:
            old, new = before.get(held.resource), after.get(held.resource)
            if old is None or new is None:
                continue
            idle = gate.open_admissions == 0 and old.used == new.used
            if held.used < old.used or (idle and held.used != new.used):
                return await self._drifted(group, known, epoch, held, new)
            if new.version > held.version:
                newer.append(new)
        if not newer:
            return Reconciled.EQUAL
        await self._store.set_capacity(group, epoch=epoch.value, run_id=epoch.run_id, resources=newer, add=False)
        return Reconciled.PUSHED

    async def _drifted(
        self, group: int, known: _Group, epoch: Epoch, gate: ResourceState, ledger: ResourceState
    ) -> Reconciled:
        self.counts.drifts += 1
        _logger.error(
            "the gate disagrees with the ledger: a new epoch is opened",
            extra={"group": group, "resource": gate.resource, "gate_used": gate.used, "ledger_used": ledger.used},
        )
        self._found_closed(known, epoch.value)
        if known.opening is None:
            self._start_opening(known, self._replace(group, known, epoch))
        await self._open(group, known)
        return Reconciled.DRIFTED

    # --- opening --------------------------------------------------------------------------------------------------

    def _know(self, group: int) -> _Group:
        known = self._groups.get(group)
        if known is not None:
            return known
        assert not self._closed, "the gate has been closed"
        known = self._groups[group] = _Group()
        known.coalescer = Coalescer(
            partial(self._admit_batch, group, known),
            items_max=self._settings.items_max,
            in_flight_max=self._settings.in_flight_max,
            queue_items_max=self._settings.queue_items_max,
            queue_seconds_max=self._settings.queue_seconds_max,
            name="gate",
            enough_items=self._settings.enough_items,
            on_batch=self._on_batch,
            on_dropped=partial(self._give_back_dropped, group),
        )
        return known

    def _found_closed(self, known: _Group, epoch: int) -> None:
        if known.epoch is not None and known.epoch.value == epoch:
            known.epoch = None
            self.counts.closed += 1

    async def _open(self, group: int, known: _Group) -> Epoch:
        """The epoch to admit under; one attempt at a time for a group, whoever waits for it, whoever is cancelled.

        Raises GateUnavailable and RedisUnavailable.
        """
        if known.opening is None:
            self._start_opening(known, self._adopt_or_rebuild(group, known))
        assert known.opening is not None
        return await asyncio.shield(known.opening)

    async def _if_open(self, group: int, known: _Group) -> Epoch | None:
        """The epoch that it is open under; None: it is closed, and so holds nothing to look after.

        Background jobs go over all groups one after the other. Opening each would cost up to `adopt_seconds_max` after
        a flush, so that what dead workers left in the last ones would stay open for minutes.
        """
        if known.epoch is not None:
            return known.epoch
        current = await self._source.current_epoch(group)
        if current is None:
            return None
        state = await self._store.inspect(group, resources=False)
        if state.open_epoch != current.value or state.run_id != current.run_id:
            return None
        self.counts.adopted += 1
        return self._adopt(known, current)

    @staticmethod
    def _start_opening(known: _Group, work: Coroutine[Any, Any, Epoch]) -> None:
        task = known.opening = asyncio.get_running_loop().create_task(work, name="gate opening")

        def ended(_: asyncio.Task[Epoch]) -> None:
            known.opening = None
            if not task.cancelled():
                task.exception()  # those who wait get it, and if nobody waits nobody misses it

        task.add_done_callback(ended)

    async def _replace(self, group: int, known: _Group, epoch: Epoch) -> Epoch:
        """Open another epoch although Redis is open under this one."""
        rebuilt = await self._rebuild(group, known, replacing=epoch.value, run_id=epoch.run_id)
        return rebuilt or await self._adopt_or_rebuild(group, known)

    async def _adopt_or_rebuild(self, group: int, known: _Group) -> Epoch:
        """Go on with the current epoch if Redis is open under it; wait for another worker's rebuild; else rebuild."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.adopt_seconds_max * (1 + self._jitter())
        while True:
            current = await self._source.current_epoch(group)
            state = await self._store.inspect(group, resources=False)
            if current is None:
                rebuilt = await self._rebuild(group, known, replacing=None, run_id=state.run_id)
            elif state.open_epoch == current.value and state.run_id == current.run_id:
                self.counts.adopted += 1
                return self._adopt(known, current)
            elif _is_broken(current, state, known.used_epoch) or loop.time() >= deadline:
                rebuilt = await self._rebuild(group, known, replacing=current.value, run_id=state.run_id)
            else:
                rebuilt = None
            if rebuilt is not None:
                return rebuilt
            if loop.time() >= deadline + self._settings.adopt_seconds_max:
                raise GateUnavailable("its group is being opened elsewhere")
            await asyncio.sleep(self._settings.adopt_poll_seconds)

    async def _rebuild(self, group: int, known: _Group, *, replacing: int | None, run_id: str) -> Epoch | None:
        """New epoch in the ledger, then read the ledger, then load, then open. None: another worker was faster."""
        opened = await self._source.open_epoch(group, replacing=replacing, run_id=run_id)
        if not opened.won:
            return None
        epoch = opened.epoch
        known.used_epoch = epoch.value  # so that nobody waits for us if it fails half-way
        status = await self._store.prepare(group, epoch=epoch.value, run_id=run_id)
        if status is Status.OPEN:
            resources = await self._source.resources(group)
            complete = not await self._source.has_grants(group)
            status = await self._store.load(
                group, epoch=epoch.value, run_id=run_id, complete=complete, resources=resources
            )
        if status is not Status.OPEN:
            _logger.warning("rebuild overtaken", extra={"group": group, "epoch": epoch.value, "status": status.name})
            return None
        self.counts.opened += 1
        if not complete:
            self._start_backfill(group, known, epoch, after="")
        return self._adopt(known, epoch)

    @staticmethod
    def _adopt(known: _Group, epoch: Epoch) -> Epoch:
        known.epoch = epoch
        known.used_epoch = epoch.value
        return epoch

    # --- markers after a rebuild ----------------------------------------------------------------------------------

    def _take_over_backfill(self, group: int, known: _Group, epoch: Epoch, gate: GateState) -> None:
        """Whoever rebuilt marks what was granted; if that worker died, go on where it stopped."""
        takeover_ms = self._settings.backfill_takeover_seconds * 1000
        alive = gate.backfill_age_ms is not None and gate.backfill_age_ms < takeover_ms
        if not gate.complete and not alive and known.backfill is None:
            self._start_backfill(group, known, epoch, after=gate.backfill_cursor)

    def _start_backfill(self, group: int, known: _Group, epoch: Epoch, *, after: str) -> None:
        if known.backfill is not None:
            known.backfill.cancel()  # of a former epoch
        task = asyncio.get_running_loop().create_task(self._backfill(group, epoch, after), name="gate backfill")
        known.backfill = task

        def ended(_: asyncio.Task[None]) -> None:
            if known.backfill is task:
                known.backfill = None

        task.add_done_callback(ended)

    async def _backfill(self, group: int, epoch: Epoch, after: str) -> None:
        """Ends early when the epoch has ended or Redis or the ledger is away; reconciling starts it again."""
        page_items = self._settings.backfill_page_items
        try:
            while True:
                page = await self._source.granted_requests(group, after=after, limit=page_items)
                complete = len(page) < page_items
                if not await self._store.mark_granted(
                    group, epoch=epoch.value, run_id=epoch.run_id, request_ids=page, complete=complete
                ):
                    return
                self.counts.backfilled += len(page)
                if complete:
                    return
                after = page[-1]
        except Exception:
            _logger.warning("backfill interrupted", exc_info=True, extra={"group": group, "after": after})

    # --- closing --------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Finish what is queued, then send the settlements, within `close_seconds_max`."""
        self._closed = True
        groups = list(self._groups.values())
        await asyncio.gather(*(known.coalescer.aclose() for known in groups))
        for known in groups:
            if known.backfill is not None:
                known.backfill.cancel()
        await self.settling.aclose(self._settings.close_seconds_max)


def _is_broken(current: Epoch, state: GateState, used_epoch: int | None) -> bool:
    """Whether Redis will not open under the current epoch by itself, so that there is nothing to wait for.

    We have admitted under it, or tried to load it, and now it is closed; or it was loaded on another process and we
    are new here. Else it may be another worker's rebuild under way, or two workers see two Redis processes (a split):
    then neither may take the epoch from the other as fast as it can.
    """
    if current.value == used_epoch:
        return True
    return state.loading_epoch != current.value and used_epoch is None and current.run_id != state.run_id


def _oldest(admissions: dict[int, OpenAdmission], limit: int) -> dict[int, OpenAdmission]:
    kept = heapq.nlargest(limit, admissions.values(), key=lambda admission: admission.age_ms)
    return {admission.admission: admission for admission in kept}
