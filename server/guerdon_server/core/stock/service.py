"""The gate: refuses early, at the speed of Redis, what the ledger would refuse later. It grants nothing."""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from guerdon_server.core.stock.buckets import bucket_of, is_broken, is_open, merged, nothing_of, run_id_of, tags
from guerdon_server.core.stock.exchange import BucketClosed, Exchange
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
    Tag,
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
    drift_units: int = 0  # by so many units, all times together
    settled: int = 0  # admissions that were open and were settled
    settled_in_vain: int = 0  # settlements that found the group closed, so that there was nothing to settle
    backfilled: int = 0  # requests that were marked granted after a rebuild


class _Rerouted(Exception):
    """The number of buckets is another one by now: the items may belong to other ones. Nothing of them was taken."""


_Lane: TypeAlias = Coalescer[AdmitItem, Answer]


class _Group:
    """One promotion as this worker knows it. epoch: what it admits under, None = to be opened before the next call.

    used_epoch: the last one that it admitted under or opened itself, also after it was found closed. buckets: how many
    it had when it was last open. lanes: the queue of each bucket, by its number and how many there are; only: where
    there is one.
    """

    __slots__ = ("backfill", "buckets", "epoch", "lanes", "only", "opening", "used_epoch")

    def __init__(self) -> None:
        self.buckets = 1
        self.only: _Lane
        self.lanes: dict[tuple[int, int], _Lane] = {}
        self.epoch: Epoch | None = None
        self.used_epoch: int | None = None
        self.opening: asyncio.Task[Epoch] | None = None
        self.backfill: asyncio.Task[None] | None = None


class Gate:
    """Admits requests of gate groups against limits and resources, and keeps Redis true to the ledger.

    One instance per event loop. For metrics, from any thread: `counts`, `settling`, `exchange`, `queued_items()`,
    `queue_age_seconds()`, `refused_total()`, `in_flight_batches()`; and `on_batch(items, seconds)`, called after each
    batch of items.
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
        self.exchange = Exchange(store)
        self._store = store
        self._source = source
        self._settings = settings
        self._on_batch = on_batch
        self._on_settled = on_settled
        self._jitter = jitter
        self._groups: dict[int, _Group] = {}
        self._refused_total = 0  # of groups that were forgotten
        self._closed = False

    # --- the hot path ---------------------------------------------------------------------------------------------

    async def admit(self, group: int, items: Sequence[AdmitItem]) -> Admitted:
        """Answer each of 1..`items_max` items, in order; joined with other callers' into one script for each bucket.

        Raises GateUnavailable (nothing that was taken stays taken: it is given back, since it was never sent to the
        commit) and QueueFull. A caller that is cancelled while it waits owns nothing either. Where some buckets can't
        admit now and others can, the items of the former are UNKNOWN_RESOURCE.
        """
        for item in items:  # here: a malformed item must not fail the others of its batch
            assert item.is_sound(), item
        known = self._groups.get(group) or self._know(group)
        while True:
            try:
                if known.buckets == 1:
                    answers = await self._admit_to(group, known.only, items)
                else:
                    answers = await self._admit_to_buckets(group, known, items)
                return Admitted(answers[0].epoch, answers)
            except _Rerouted:
                continue

    async def _admit_to(self, group: int, lane: _Lane, items: Sequence[AdmitItem]) -> Sequence[Answer]:
        future = lane.submit(items)
        try:
            return await future
        except asyncio.CancelledError:
            self._drop(group, items, future)
            raise

    async def _admit_to_buckets(self, group: int, known: _Group, items: Sequence[AdmitItem]) -> Sequence[Answer]:
        """Each item in its own bucket."""
        buckets = known.buckets
        places: dict[int, list[int]] = defaultdict(list)
        for at, item in enumerate(items):
            places[bucket_of(item.request_id, buckets)].append(at)
        if len(places) == 1:
            (bucket,) = places
            return await self._admit_to(group, self._lane(group, known, bucket, buckets), items)
        parts = {bucket: [items[at] for at in ats] for bucket, ats in places.items()}
        futures: dict[int, asyncio.Future[Sequence[Answer]]] = {}
        try:
            for bucket, part in parts.items():
                futures[bucket] = self._lane(group, known, bucket, buckets).submit(part)
            await asyncio.wait(futures.values())
        except BaseException:  # a queue is full, or the caller has gone
            for bucket, future in futures.items():
                future.cancel()
                self._drop(group, parts[bucket], future)
            raise
        answers: dict[int, Answer] = {}
        failed: dict[int, BaseException] = {}
        for bucket, future in futures.items():
            if error := future.exception():
                failed[bucket] = error
            else:
                answers.update(zip(places[bucket], future.result(), strict=True))
        if rerouted := next((error for error in failed.values() if isinstance(error, _Rerouted)), None):
            raise rerouted  # to be admitted under another epoch: these admissions have ended with theirs
        for bucket, error in failed.items():
            if not answers or not isinstance(error, ServiceError):
                for other in parts.keys() - failed.keys():
                    self._drop(group, parts[other], futures[other])
                raise error
            unknown = Answer(0, AdmitCode.UNKNOWN_RESOURCE, sure=True)
            answers.update(dict.fromkeys(places[bucket], unknown))
        return [answers[at] for at in range(len(items))]

    def _drop(self, group: int, items: Sequence[AdmitItem], future: asyncio.Future[Sequence[Answer]]) -> None:
        """The caller has gone. If it did between the answer and its waking up, the coalescer has handed it out."""
        if future.done() and not future.cancelled() and future.exception() is None:
            self._give_back_dropped(group, items, future.result())

    async def is_pending(self, group: int, request_id: str) -> bool:
        """Whether an admission of the request is open. Raises GateUnavailable."""
        known = self._know(group)
        try:
            for _ in range(self._settings.attempts_max):
                epoch = known.epoch or await self._open(group, known)
                bucket = bucket_of(request_id, epoch.buckets)
                marked = await self._store.is_marked_open(
                    tags(group, epoch.buckets)[bucket],
                    epoch=epoch.value,
                    run_id=epoch.run_ids[bucket],
                    request_id=request_id,
                )
                if marked is not None:
                    return marked
                self._found_closed(known, epoch.value)
        except RedisUnavailable as error:
            raise GateUnavailable(str(error)) from error
        raise GateUnavailable(f"closed {self._settings.attempts_max} times in a row")

    def settle(self, group: int, settlements: Iterable[Settlement]) -> None:
        """Report what became of admissions; at once and without failing, sent in the background."""
        self.settling.put(group, settlements)

    async def settled(self) -> None:
        """Wait, within limits, until what was reported before this call has arrived in Redis."""
        await self.settling.sent(self._settings.settled_seconds_max)

    async def _admit_batch(
        self, group: int, known: _Group, items: list[AdmitItem], *, bucket: int, buckets: int
    ) -> Sequence[Answer]:
        sent = reloaded = False
        tag = tags(group, buckets)[bucket]
        try:
            for _ in range(self._settings.attempts_max):
                epoch = known.epoch or await self._open(group, known)
                if len(epoch.run_ids) != buckets:
                    raise _Rerouted
                sent = True
                answers = await self._store.admit(tag, epoch=epoch.value, run_id=epoch.run_ids[bucket], items=items)
                if answers is None:
                    self._found_closed(known, epoch.value)
                elif not reloaded and any(answer.code is AdmitCode.UNKNOWN_RESOURCE for answer in answers):
                    # A new prize: bring it in, and repeat the whole batch, which is idempotent.
                    await self._add_resources(group, epoch, bucket)
                    reloaded = True
                elif buckets == 1:
                    return answers
                else:
                    try:
                        return await self.exchange.help(group, epoch, bucket, items, answers)
                    except BucketClosed:
                        self._found_closed(known, epoch.value)
            raise GateUnavailable(f"closed {self._settings.attempts_max} times in a row")
        except _Rerouted:
            raise
        except BaseException as error:
            if sent:
                # The script may have run, or may run yet: whatever it took is never sent to the commit.
                self.settle(group, [_given_back(item) for item in items])
            if isinstance(error, RedisUnavailable):
                self.counts.unavailable += 1
                raise GateUnavailable(str(error)) from error
            raise

    def _give_back_dropped(self, group: int, items: Sequence[AdmitItem], answers: Sequence[Answer]) -> None:
        """Nobody waits for these answers any more, so nobody will send them to the commit."""
        given_back = [
            _given_back(item) for item, answer in zip(items, answers, strict=True) if answer.code is AdmitCode.ADMITTED
        ]
        self.counts.dropped_answers += len(given_back)
        self.settle(group, given_back)

    async def _send_settlements(self, group: int, settlements: Sequence[Settlement]) -> None:
        known = self._groups.get(group)
        epoch = known.epoch if known else None
        settled = None
        if epoch is not None:
            started = time.perf_counter()
            settled = await self._settle_buckets(group, epoch, settlements)
            if self._on_settled is not None:
                self._on_settled(len(settlements), time.perf_counter() - started)
        if settled is None:
            # Admissions live and die with their epoch, so of a closed one there is nothing left to settle.
            self.counts.settled_in_vain += len(settlements)
        else:
            self.counts.settled += settled

    async def _settle_buckets(self, group: int, epoch: Epoch, settlements: Sequence[Settlement]) -> int | None:
        """How many were open; None: no bucket is open under this epoch. If one is away, all are sent again."""
        if epoch.buckets == 1:
            return await self._store.settle(group, epoch=epoch.value, run_id=epoch.run_id, settlements=settlements)
        parts: dict[int, list[Settlement]] = defaultdict(list)
        for settlement in settlements:
            parts[bucket_of(settlement.request_id, epoch.buckets)].append(settlement)
        counts = await asyncio.gather(
            *(
                self._store.settle(
                    tags(group, epoch.buckets)[bucket],
                    epoch=epoch.value,
                    run_id=epoch.run_ids[bucket],
                    settlements=part,
                )
                for bucket, part in parts.items()
            ),
            return_exceptions=True,
        )
        for count in counts:
            if isinstance(count, BaseException):
                raise count
        known = [count for count in counts if isinstance(count, int)]
        return sum(known) if known else None

    # --- what others tell the gate --------------------------------------------------------------------------------

    def epoch_refused(self, group: int, epoch: int) -> None:
        """The commit answered STALE_EPOCH to an admission under `epoch`: look again before the next call."""
        known = self._groups.get(group)
        if known is not None:
            self._found_closed(known, epoch)

    async def set_capacity(self, group: int, *, resource: int, capacity: int, version: int) -> None:
        """Tell the gate what the ledger says of a resource's capacity; an older version changes nothing.

        Also when this worker has not admitted to the group, because others have. A group that is closed here is opened
        anew, in the background: somebody may go on refusing by a former primary, which has not heard of this. Best
        effort: what doesn't arrive is pushed by the next reconciliation. Raises nothing that a retry could mend.
        """
        known = self._know(group)
        state = ResourceState(resource, capacity, version, 0)
        try:
            epoch = known.epoch or await self._source.current_epoch(group)
            if epoch is None:
                return
            try:
                changed = await self._store.set_capacity(
                    group, epoch=epoch.value, run_id=epoch.run_ids[0], resources=[state], add=False
                )
                if changed is None:
                    raise BucketClosed
                if epoch.buckets > 1:
                    await self.exchange.level(group, epoch, [resource])
            except BucketClosed:
                self._found_closed(known, epoch.value)
                self._begin_opening(group, known)
        except (RedisUnavailable, ServiceError):
            _logger.warning("capacity not pushed, the reconciler will", extra={"group": group, "resource": resource})

    async def _add_resources(self, group: int, epoch: Epoch, bucket: int) -> None:
        """Bring in what the ledger has and the gate has not; read after the epoch was opened (set_capacity.lua)."""
        states = await self._source.resources(group)
        await self._store.set_capacity(group, epoch=epoch.value, run_id=epoch.run_ids[0], resources=states, add=True)
        if bucket:
            await self._store.set_capacity(
                tags(group, epoch.buckets)[bucket],
                epoch=epoch.value,
                run_id=epoch.run_ids[bucket],
                resources=nothing_of(states),
                add=True,
            )

    async def forget(self, group: int) -> None:
        """Delete the group from Redis and from here, when its promotion has ended. Raises GateUnavailable."""
        known = self._groups.pop(group, None)
        if known is not None:
            for lane in known.lanes.values():
                await lane.aclose()
                self._refused_total += lane.refused_total
            if known.backfill is not None:
                known.backfill.cancel()
        try:
            for tag in tags(group, known.buckets if known is not None else 1):
                await self._store.forget(tag)
        except RedisUnavailable as error:
            raise GateUnavailable(str(error)) from error

    # --- what others ask ------------------------------------------------------------------------------------------

    def groups(self) -> Sequence[int]:
        """The groups that this worker knows."""
        return list(self._groups)

    def queued_items(self) -> int:
        """How many items wait to be sent to Redis, over all groups."""
        return sum(lane.queued_items for lane in self._lanes())

    def queue_age_seconds(self) -> float:
        """How long the first item of the oldest queue has waited for Redis; 0 where none waits."""
        return max((lane.queue_age_seconds() for lane in self._lanes()), default=0.0)

    def refused_total(self) -> int:
        """How many callers found a queue full or too old."""
        return self._refused_total + sum(lane.refused_total for lane in self._lanes())

    def in_flight_batches(self) -> int:
        """How many admitting batches are under way, over all groups."""
        return sum(lane.in_flight for lane in self._lanes())

    def _lanes(self) -> list[_Lane]:
        # Copies, each made in one step: a scrape comes from another thread.
        return [lane for known in list(self._groups.values()) for lane in list(known.lanes.values())]

    async def inspect(self, group: int) -> GateState:
        """All that Redis holds of the group, to be compared with the ledger. Raises GateUnavailable."""
        known = self._groups.get(group)
        try:
            return await self._inspect(group, known.buckets if known is not None else 1)
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
            groups = tags(group, epoch.buckets)
            scans = await asyncio.gather(
                *(
                    self._scan(tag, epoch.value, run_id, limit)
                    for tag, run_id in zip(groups, epoch.run_ids, strict=True)
                ),
                return_exceptions=True,
            )
            away = [scan for scan in scans if isinstance(scan, BaseException)]
            found = [scan for scan in scans if scan is not None and not isinstance(scan, BaseException)]
            if away and not found:
                raise away[0]
            if None in scans:
                self._found_closed(known, epoch.value)
        except RedisUnavailable as error:
            raise GateUnavailable(str(error)) from error
        seen = {number: admission for _, some in found for number, admission in some.items()}
        total = sum(total for total, _ in found)
        return OpenAdmissions(epoch.value, total, list(_oldest(seen, limit).values()))

    async def _scan(self, tag: Tag, epoch: int, run_id: str, limit: int) -> tuple[int, dict[int, OpenAdmission]] | None:
        """How many admissions of one bucket are open, and the oldest; None: it is closed."""
        seen: dict[int, OpenAdmission] = {}
        cursor, total = "0", 0
        for _ in range(self._settings.scan_pages_max):
            page = await self._store.open_admissions(
                tag, epoch=epoch, run_id=run_id, cursor=cursor, page_items=self._settings.scan_page_items
            )
            if page is None:
                return None
            cursor, total = page.cursor, page.total
            seen.update((admission.admission, admission) for admission in page.admissions)
            if len(seen) > 2 * limit:
                seen = _oldest(seen, limit)
            if cursor == "0":
                break
        return total, seen

    async def look_at_epochs(self) -> None:
        """Close here what another worker has opened under another epoch. Each worker is to call it every second.

        A refusal by the gate asks nobody else. So a former primary that only this worker still reaches (a split) would
        have it say "sold out" for as long as no commit tells it, which may be for ever. Raises the source's errors.
        """
        held = {group: known.epoch for group, known in self._groups.items() if known.epoch is not None}
        if not held:
            return
        current = await self._source.current_epochs(list(held))
        for group, epoch in held.items():
            known = self._groups.get(group)
            if known is not None and current.get(group) != epoch:
                self._found_closed(known, epoch.value)

    async def reconcile(self, group: int) -> Reconciled:
        """Compare with the ledger and mend: push newer capacities, open a new epoch if the gate is wrong.

        Also takes over a backfill that stands still. A group that is closed is left to the next request for it. Meant
        to be called every second by one worker. Raises GateUnavailable.
        """
        known = self._know(group)
        epoch = None
        try:
            epoch = await self._if_open(group, known)
            return Reconciled.CLOSED if epoch is None else await self._compare(group, known, epoch)
        except BucketClosed:
            assert epoch is not None, "only what is open is compared"
            self._found_closed(known, epoch.value)
            return Reconciled.CLOSED
        except RedisUnavailable as error:
            raise GateUnavailable(str(error)) from error

    async def _compare(self, group: int, known: _Group, epoch: Epoch) -> Reconciled:
        # The order is what makes it exact: all that the ledger had used was admitted before the gate is looked at,
        # and if nothing is open then, all that was ever admitted is in the ledger when it is read again.
        before = {state.resource: state for state in await self._source.resources(group)}
        gate = await self._inspect(group, epoch.buckets)
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
                figures = {"resource": held.resource, "gate_used": held.used, "ledger_used": new.used}
                return await self._drifted(group, known, epoch, abs(held.used - new.used), figures)
            if new.version > held.version:
                newer.append(new)
        if newer:
            await self._store.set_capacity(
                group, epoch=epoch.value, run_id=epoch.run_ids[0], resources=newer, add=False
            )
        if epoch.buckets > 1:
            made = await self.exchange.level(group, epoch, [held.resource for held in gate.resources])
            if made:
                return await self._drifted(group, known, epoch, made, {"received_and_never_given": made})
        return Reconciled.PUSHED if newer else Reconciled.EQUAL

    async def _drifted(
        self, group: int, known: _Group, epoch: Epoch, units: int, figures: Mapping[str, int]
    ) -> Reconciled:
        self.counts.drifts += 1
        self.counts.drift_units += units
        _logger.error("the gate disagrees with the ledger: a new epoch is opened", extra={"group": group, **figures})
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
        known.only = self._lane(group, known, 0, 1)
        return known

    def _lane(self, group: int, known: _Group, bucket: int, buckets: int) -> _Lane:
        lane = known.lanes.get((bucket, buckets))
        if lane is not None:
            return lane
        lane = known.lanes[bucket, buckets] = Coalescer(
            partial(self._admit_batch, group, known, bucket=bucket, buckets=buckets),
            items_max=self._settings.items_max,
            in_flight_max=self._settings.in_flight_max,
            queue_items_max=self._settings.queue_items_max,
            queue_seconds_max=self._settings.queue_seconds_max,
            name="gate",
            enough_items=self._settings.enough_items,
            on_batch=self._on_batch,
            on_dropped=partial(self._give_back_dropped, group),
        )
        return lane

    def _found_closed(self, known: _Group, epoch: int) -> None:
        if known.epoch is not None and known.epoch.value == epoch:
            known.epoch = None
            self.counts.closed += 1

    async def _open(self, group: int, known: _Group) -> Epoch:
        """The epoch to admit under; one attempt at a time for a group, whoever waits for it, whoever is cancelled.

        Raises GateUnavailable and RedisUnavailable.
        """
        return await asyncio.shield(self._begin_opening(group, known))

    def _begin_opening(self, group: int, known: _Group) -> asyncio.Task[Epoch]:
        if known.opening is None:
            self._start_opening(known, self._adopt_or_rebuild(group, known))
        assert known.opening is not None
        return known.opening

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
        states = await self._reachable(group, current.buckets)
        if not is_open(current, states):
            if any(state is not None and state.open_epoch == current.value for state in states):
                # The other buckets hold what has to be looked after, and nobody may ask for the closed one.
                self._begin_opening(group, known)
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
        run_id = run_id_of(await self._reachable(group, epoch.buckets))
        rebuilt = await self._rebuild(group, known, replacing=epoch.value, run_id=run_id)
        return rebuilt or await self._adopt_or_rebuild(group, known)

    async def _adopt_or_rebuild(self, group: int, known: _Group) -> Epoch:
        """Go on with the current epoch if Redis is open under it; wait for another worker's rebuild; else rebuild."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.adopt_seconds_max * (1 + self._jitter())
        while True:
            current = await self._source.current_epoch(group)
            states = await self._reachable(group, current.buckets if current else 1)
            if current is None:
                rebuilt = await self._rebuild(group, known, replacing=None, run_id=run_id_of(states))
            elif is_open(current, states):
                self.counts.adopted += 1
                return self._adopt(known, current)
            elif is_broken(current, states, known.used_epoch) or loop.time() >= deadline:
                rebuilt = await self._rebuild(group, known, replacing=current.value, run_id=run_id_of(states))
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
        if known.buckets != epoch.buckets:
            await self._forget_buckets(group, known.buckets, epoch.buckets)
        buckets = [
            (tag, run_id) for tag, run_id in zip(tags(group, epoch.buckets), epoch.run_ids, strict=True) if run_id
        ]
        status = await _all_open(self._store.prepare(tag, epoch=epoch.value, run_id=run_id) for tag, run_id in buckets)
        if status is Status.OPEN:
            resources = await self._source.resources(group)
            complete = not await self._source.has_grants(group)
            status = await _all_open(
                self._store.load(
                    tag,
                    epoch=epoch.value,
                    run_id=run_id,
                    complete=complete,
                    resources=resources if tag == group else nothing_of(resources),
                )
                for tag, run_id in buckets
            )
        if status is not Status.OPEN:
            _logger.warning("rebuild overtaken", extra={"group": group, "epoch": epoch.value, "status": status.name})
            return None
        self.counts.opened += 1
        if not complete:
            self._start_backfill(group, known, epoch, after="")
        return self._adopt(known, epoch)

    async def _forget_buckets(self, group: int, before: int, now: int) -> None:
        """Best effort: what stays is closed, and takes memory."""
        former = set(tags(group, before)) - set(tags(group, now))
        await asyncio.gather(*(self._store.forget(tag) for tag in former), return_exceptions=True)

    @staticmethod
    def _adopt(known: _Group, epoch: Epoch) -> Epoch:
        known.epoch = epoch
        known.used_epoch = epoch.value
        known.buckets = epoch.buckets
        return epoch

    async def _reachable(self, group: int, buckets: int) -> Sequence[GateState | None]:
        """The state of each bucket, without resources; None: it is away. Raises RedisUnavailable if all are."""
        states = await asyncio.gather(
            *(self._store.inspect(tag, resources=False) for tag in tags(group, buckets)), return_exceptions=True
        )
        found: list[GateState | None] = []
        for state in states:
            if isinstance(state, BaseException) and not isinstance(state, RedisUnavailable):
                raise state
            found.append(None if isinstance(state, BaseException) else state)
        if isinstance(states[0], BaseException) and not any(found):
            raise states[0]
        return found

    async def _inspect(self, group: int, buckets: int) -> GateState:
        """All buckets, with resources. Raises RedisUnavailable."""
        if buckets == 1:
            return await self._store.inspect(group, resources=True)
        return merged(await asyncio.gather(*(self._store.inspect(tag, resources=True) for tag in tags(group, buckets))))

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
                parts: dict[int, list[str]] = {bucket: [] for bucket in range(epoch.buckets)}
                for request_id in page:
                    parts[bucket_of(request_id, epoch.buckets)].append(request_id)
                marked = await asyncio.gather(
                    *(
                        self._store.mark_granted(
                            tag, epoch=epoch.value, run_id=run_id, request_ids=part, complete=complete
                        )
                        for tag, run_id, part in zip(
                            tags(group, epoch.buckets), epoch.run_ids, parts.values(), strict=True
                        )
                    )
                )
                if not all(marked):
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
        await asyncio.gather(*(lane.aclose() for lane in self._lanes()))
        for known in groups:
            if known.backfill is not None:
                known.backfill.cancel()
        await self.settling.aclose(self._settings.close_seconds_max)


async def keep_looking_at_epochs(gate: Gate, interval_seconds: float) -> None:
    """Run for ever; a failure is logged and tried again."""
    while True:
        await asyncio.sleep(interval_seconds)
        try:
            await gate.look_at_epochs()
        except ServiceError as error:
            _logger.warning("the epochs could not be looked at", extra={"why": error.message})
        except Exception:
            _logger.exception("looking at the epochs failed")


def _given_back(item: AdmitItem) -> Settlement:
    return Settlement(item.admission, item.request_id, SettleCode.GIVEN_BACK)


async def _all_open(calls: Iterable[Awaitable[Status]]) -> Status:
    """OPEN if all buckets that answer say so, else what one of the others says.

    One that does not answer is closed; or it is open with what it was to be loaded with, and the answer was lost.
    Raises RedisUnavailable if none answers.
    """
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    statuses = []
    for outcome in outcomes:
        if not isinstance(outcome, BaseException):
            statuses.append(outcome)
        elif len(outcomes) == 1 or not isinstance(outcome, RedisUnavailable):
            raise outcome
    if not statuses:
        raise RedisUnavailable("no bucket answers")
    return next((status for status in statuses if status is not Status.OPEN), Status.OPEN)


def _oldest(admissions: dict[int, OpenAdmission], limit: int) -> dict[int, OpenAdmission]:
    kept = heapq.nlargest(limit, admissions.values(), key=lambda admission: admission.age_ms)
    return {admission.admission: admission for admission in kept}
