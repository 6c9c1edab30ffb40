"""The gate: refuses early, at the speed of Redis, what the ledger would refuse later. It grants nothing."""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from guerdon_server.core.stock.buckets import bucket_of, merged, nothing_of, tags
from guerdon_server.core.stock.exchange import BucketClosed, Exchange
from guerdon_server.core.stock.model import (
    AdmitCode,
    AdmitItem,
    Admitted,
    Answer,
    Epoch,
    GateCounts,
    GateState,
    GateUnavailable,
    OpenAdmission,
    OpenAdmissions,
    Reconciled,
    ResourceState,
    SettleCode,
    Settlement,
    Tag,
)
from guerdon_server.core.stock.opening import Known, Openings
from guerdon_server.core.stock.ports import GateSource
from guerdon_server.core.stock.redis.store import RedisGate
from guerdon_server.core.stock.settings import GateSettings
from guerdon_server.core.stock.settling import SettleQueue
from guerdon_server.platform.batching import Coalescer
from guerdon_server.platform.errors import ServiceError
from guerdon_server.platform.redis import RedisUnavailable

_logger = logging.getLogger(__name__)


class _Rerouted(Exception):
    """The number of buckets is another one by now: the items may belong to other ones. Nothing of them was taken."""


_Lane: TypeAlias = Coalescer[AdmitItem, Answer]


class _Group(Known):
    """With the queue of each bucket, by its number and how many there are (`lanes`); `only`: where there is one."""

    __slots__ = ("lanes", "only")

    def __init__(self) -> None:
        super().__init__()
        self.only: _Lane
        self.lanes: dict[tuple[int, int], _Lane] = {}


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
        self._openings = Openings(store, source, settings=settings, counts=self.counts, jitter=jitter)
        self._store = store
        self._source = source
        self._settings = settings
        self._on_batch = on_batch
        self._on_settled = on_settled
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
                epoch = known.epoch or await self._openings.open(group, known)
                bucket = bucket_of(request_id, epoch.buckets)
                marked = await self._store.is_marked_open(
                    tags(group, epoch.buckets)[bucket],
                    epoch=epoch.value,
                    run_id=epoch.run_ids[bucket],
                    request_id=request_id,
                )
                if marked is not None:
                    return marked
                self._openings.found_closed(known, epoch.value)
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
                epoch = known.epoch or await self._openings.open(group, known)
                if len(epoch.run_ids) != buckets:
                    raise _Rerouted
                sent = True
                answers = await self._store.admit(tag, epoch=epoch.value, run_id=epoch.run_ids[bucket], items=items)
                if answers is None:
                    self._openings.found_closed(known, epoch.value)
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
                        self._openings.found_closed(known, epoch.value)
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
            self._openings.found_closed(known, epoch)

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
                self._openings.found_closed(known, epoch.value)
                self._openings.begin(group, known)
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
            epoch = await self._openings.if_open(group, known)
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
                self._openings.found_closed(known, epoch.value)
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
                self._openings.found_closed(known, epoch.value)

    async def reconcile(self, group: int) -> Reconciled:
        """Compare with the ledger and mend: push newer capacities, open a new epoch if the gate is wrong.

        Also takes over a backfill that stands still. A group that is closed is left to the next request for it. Meant
        to be called every second by one worker. Raises GateUnavailable.
        """
        known = self._know(group)
        epoch = None
        try:
            epoch = await self._openings.if_open(group, known)
            return Reconciled.CLOSED if epoch is None else await self._compare(group, known, epoch)
        except BucketClosed:
            assert epoch is not None, "only what is open is compared"
            self._openings.found_closed(known, epoch.value)
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
            self._openings.found_closed(known, epoch.value)
            return Reconciled.CLOSED
        self._openings.take_over_backfill(group, known, epoch, gate)
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
        await self._openings.renew(group, known, epoch)
        return Reconciled.DRIFTED

    # --- its groups -----------------------------------------------------------------------------------------------

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

    async def _inspect(self, group: int, buckets: int) -> GateState:
        """All buckets, with resources. Raises RedisUnavailable."""
        if buckets == 1:
            return await self._store.inspect(group, resources=True)
        return merged(await asyncio.gather(*(self._store.inspect(tag, resources=True) for tag in tags(group, buckets))))

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


def _oldest(admissions: dict[int, OpenAdmission], limit: int) -> dict[int, OpenAdmission]:
    kept = heapq.nlargest(limit, admissions.values(), key=lambda admission: admission.age_ms)
    return {admission.admission: admission for admission in kept}
