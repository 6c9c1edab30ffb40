"""Opening a group: under which epoch this worker admits, and rebuilding Redis from the ledger where it is not open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any

from guerdon_server.core.stock.buckets import bucket_of, is_broken, is_open, nothing_of, run_id_of, tags
from guerdon_server.core.stock.model import Epoch, GateCounts, GateState, GateUnavailable, Status
from guerdon_server.core.stock.ports import GateSource
from guerdon_server.core.stock.redis.store import RedisGate
from guerdon_server.core.stock.settings import GateSettings
from guerdon_server.platform.redis import RedisUnavailable

_logger = logging.getLogger(__name__)


class Known:
    """One promotion as this worker knows it. epoch: what it admits under, None = to be opened before the next call.

    used_epoch: the last one that it admitted under or opened itself, also after it was found closed. buckets: how many
    it had when it was last open. opening, backfill: what is under way.
    """

    __slots__ = ("backfill", "buckets", "epoch", "opening", "used_epoch")

    def __init__(self) -> None:
        self.buckets = 1
        self.epoch: Epoch | None = None
        self.used_epoch: int | None = None
        self.opening: asyncio.Task[Epoch] | None = None
        self.backfill: asyncio.Task[None] | None = None


class Openings:
    """Adopts what another worker has opened, or opens anew; after that it marks what had been granted before.

    What `counts` counts, it counts.
    """

    def __init__(
        self,
        store: RedisGate,
        source: GateSource,
        *,
        settings: GateSettings,
        counts: GateCounts,
        jitter: Callable[[], float],
    ) -> None:
        self._store = store
        self._source = source
        self._settings = settings
        self._counts = counts
        self._jitter = jitter

    def found_closed(self, known: Known, epoch: int) -> None:
        """Redis, or the ledger, said that this epoch is over: look again before the next call."""
        if known.epoch is not None and known.epoch.value == epoch:
            known.epoch = None
            self._counts.closed += 1

    async def open(self, group: int, known: Known) -> Epoch:
        """The epoch to admit under; one attempt at a time for a group, whoever waits for it, whoever is cancelled.

        Raises GateUnavailable and RedisUnavailable.
        """
        return await asyncio.shield(self.begin(group, known))

    def begin(self, group: int, known: Known) -> asyncio.Task[Epoch]:
        """Open in the background, or join who does."""
        if known.opening is None:
            self._start(known, self._adopt_or_rebuild(group, known))
        assert known.opening is not None
        return known.opening

    async def if_open(self, group: int, known: Known) -> Epoch | None:
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
                self.begin(group, known)
            return None
        self._counts.adopted += 1
        return self._adopt(known, current)

    async def renew(self, group: int, known: Known, epoch: Epoch) -> Epoch:
        """Open another epoch although Redis is open under this one. Raises as `open`."""
        self.found_closed(known, epoch.value)
        if known.opening is None:
            self._start(known, self._replace(group, known, epoch))
        return await self.open(group, known)

    def take_over_backfill(self, group: int, known: Known, epoch: Epoch, gate: GateState) -> None:
        """Whoever rebuilt marks what was granted; if that worker died, go on where it stopped."""
        takeover_ms = self._settings.backfill_takeover_seconds * 1000
        alive = gate.backfill_age_ms is not None and gate.backfill_age_ms < takeover_ms
        if not gate.complete and not alive and known.backfill is None:
            self._start_backfill(group, known, epoch, after=gate.backfill_cursor)

    @staticmethod
    def _start(known: Known, work: Coroutine[Any, Any, Epoch]) -> None:
        task = known.opening = asyncio.get_running_loop().create_task(work, name="gate opening")

        def ended(_: asyncio.Task[Epoch]) -> None:
            known.opening = None
            if not task.cancelled():
                task.exception()  # those who wait get it, and if nobody waits nobody misses it

        task.add_done_callback(ended)

    async def _replace(self, group: int, known: Known, epoch: Epoch) -> Epoch:
        """Open another epoch although Redis is open under this one."""
        run_id = run_id_of(await self._reachable(group, epoch.buckets))
        rebuilt = await self._rebuild(group, known, replacing=epoch.value, run_id=run_id)
        return rebuilt or await self._adopt_or_rebuild(group, known)

    async def _adopt_or_rebuild(self, group: int, known: Known) -> Epoch:
        """Go on with the current epoch if Redis is open under it; wait for another worker's rebuild; else rebuild."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.adopt_seconds_max * (1 + self._jitter())
        while True:
            current = await self._source.current_epoch(group)
            states = await self._reachable(group, current.buckets if current else 1)
            if current is None:
                rebuilt = await self._rebuild(group, known, replacing=None, run_id=run_id_of(states))
            elif is_open(current, states):
                self._counts.adopted += 1
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

    async def _rebuild(self, group: int, known: Known, *, replacing: int | None, run_id: str) -> Epoch | None:
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
        self._counts.opened += 1
        if not complete:
            self._start_backfill(group, known, epoch, after="")
        return self._adopt(known, epoch)

    async def _forget_buckets(self, group: int, before: int, now: int) -> None:
        """Best effort: what stays is closed, and takes memory."""
        former = set(tags(group, before)) - set(tags(group, now))
        await asyncio.gather(*(self._store.forget(tag) for tag in former), return_exceptions=True)

    @staticmethod
    def _adopt(known: Known, epoch: Epoch) -> Epoch:
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

    def _start_backfill(self, group: int, known: Known, epoch: Epoch, *, after: str) -> None:
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
                self._counts.backfilled += len(page)
                if complete:
                    return
                after = page[-1]
        except Exception:
            _logger.warning("backfill interrupted", exc_info=True, extra={"group": group, "after": after})


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
