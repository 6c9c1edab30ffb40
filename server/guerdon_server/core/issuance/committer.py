"""Group commit: batches of admitted requests go to the ledger, and the gate learns what became of each."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeAlias

from guerdon_server.core.ledger.model import CommitCode, CommitItem, CommitResult, RequestState
from guerdon_server.core.ledger.ports import BatchRefused, Ledger, LedgerAway, OutcomeUnknown
from guerdon_server.core.stock.model import SettleCode, Settlement
from guerdon_server.platform.batching import ENOUGH_ITEMS, Coalescer
from guerdon_server.platform.errors import Code, ServiceError

_log = logging.getLogger(__name__)
_RESOLVE_ATTEMPTS_MAX = 4
_RESOLVE_PAUSE_SECONDS = 0.1
_RESOLVE_PAUSE_SECONDS_MAX = 1.0
_UNRESOLVED_BATCHES_MAX = 100

Committed: TypeAlias = CommitResult | ServiceError
"""One item's outcome: decided by the ledger, or why there is none."""


class Settler(Protocol):
    """The part of the gate that a commit reports to."""

    def settle(self, group: int, settlements: Iterable[Settlement]) -> None:
        """What became of admissions; never fails, sent in the background."""
        ...


class Committer:
    """Joins requests into commits, a few in flight at once, and settles their admissions whatever happens.

    An unknown outcome (lost connection, no answer in time) is resolved by fencing before anybody is told: what was
    granted after all is found, and what was not can be given back, because it can't happen any more.
    """

    def __init__(
        self,
        ledger: Ledger,
        gate: Settler,
        *,
        items_max: int,
        in_flight_max: int,
        queue_items_max: int,
        queue_seconds_max: float = 0.25,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self._ledger = ledger
        self._gate = gate
        self.batches: Coalescer[CommitItem, Committed] = Coalescer(
            self._run,
            items_max=items_max,
            in_flight_max=in_flight_max,
            queue_items_max=queue_items_max,
            queue_seconds_max=queue_seconds_max,
            name="commit",
            enough_items=ENOUGH_ITEMS,
            on_batch=on_batch,
            on_unrun=self.give_back,
        )
        self.unknown_total = 0
        self.poison_total = 0
        self._unresolved: deque[Sequence[CommitItem]] = deque()
        self._resolving: asyncio.Task[None] | None = None

    def check_room(self, count: int) -> None:
        """Before so many items are admitted, which would be in vain. Raises QueueFull."""
        self.batches.check_room(count)

    def submit(self, items: Sequence[CommitItem]) -> asyncio.Future[Sequence[Committed]]:
        """Outcomes in the order of the items, after they are durable. Raises QueueFull (all given back)."""
        try:
            return self.batches.submit(items)
        except ServiceError:
            self.give_back(items)
            raise

    def give_back(self, items: Sequence[CommitItem]) -> None:
        """Admissions that were never sent to a commit."""
        self._settle((item, SettleCode.GIVEN_BACK, 0) for item in items)

    async def aclose(self) -> None:
        """Finish what is queued and in flight. What is unknown still is left to the sweeper."""
        await self.batches.aclose()
        if self._resolving is not None:
            self._resolving.cancel()
            await asyncio.wait({self._resolving})

    async def _run(self, items: list[CommitItem]) -> Sequence[Committed]:
        if len({(item.promotion, item.request_id) for item in items}) == len(items):
            results = await self._commit(items)
        else:
            results = await self._commit_in_rounds(items)
        self._settle(_settlements(items, results))
        return results

    async def _commit_in_rounds(self, items: Sequence[CommitItem]) -> list[Committed]:
        """A commit takes a request key once; a unit with a key that this round has already waits for the next."""
        results: dict[int, Committed] = {}
        waiting = _units(items)
        while waiting:
            keys: set[tuple[int, str]] = set()
            now: list[int] = []
            later: list[list[int]] = []
            for unit in waiting:
                wanted = {(items[i].promotion, items[i].request_id) for i in unit}
                if keys & wanted:
                    later.append(unit)
                else:
                    keys |= wanted
                    now += unit
            results.update(zip(now, await self._commit([items[i] for i in now]), strict=True))
            waiting = later
        return [results[i] for i in range(len(items))]

    async def _commit(self, items: Sequence[CommitItem]) -> Sequence[Committed]:
        try:
            return await self._ledger.commit(items)
        except LedgerAway as error:
            return [error] * len(items)
        except BatchRefused as error:
            return await self._isolate(items, error)
        except OutcomeUnknown as error:
            unknown = error
        except Exception as error:
            # Nobody foresaw it, so it says nothing about what PostgreSQL has done.
            _log.exception("a commit failed in a way that is a defect")
            unknown = OutcomeUnknown(f"a commit failed: {error}")
        self.unknown_total += 1
        _log.warning("the outcome of a commit is unknown", extra={"items": len(items), "why": str(unknown)})
        return await self._resolve(items, unknown)

    async def _isolate(self, items: Sequence[CommitItem], error: BatchRefused) -> Sequence[Committed]:
        """Find the poison by halves; a group is never cut."""
        units = _units(items)
        if len(units) == 1:
            self.poison_total += 1
            _log.error("the ledger refuses an item", extra={"request_id": items[0].request_id, "why": str(error)})
            refusal = ServiceError(
                Code.INTERNAL, "LEDGER_REFUSED", "the ledger can't book this item; nothing was granted"
            )
            return [refusal] * len(items)
        middle = units[len(units) // 2][0]
        return [*await self._commit(items[:middle]), *await self._commit(items[middle:])]

    async def _resolve(self, items: Sequence[CommitItem], unknown: OutcomeUnknown) -> Sequence[Committed]:
        """Make the unknown known: what is not granted by now never will be, under this admission."""
        for attempt in range(_RESOLVE_ATTEMPTS_MAX):
            try:
                fences = await self._ledger.fence([(item.promotion, item.request_id, item.admission) for item in items])
            except (LedgerAway, OutcomeUnknown):
                await asyncio.sleep(_RESOLVE_PAUSE_SECONDS * 2**attempt)
                continue
            except Exception:
                _log.exception("unknown outcomes can't be fenced", extra={"items": len(items)})
                break
            return [_resolved(item, *fence) for item, fence in zip(items, fences, strict=True)]
        self._resolve_later(items)
        return [unknown] * len(items)

    def _resolve_later(self, items: Sequence[CommitItem]) -> None:
        """The callers are told that it is unknown; when they repeat it, it must not be pending until it is old."""
        if len(self._unresolved) >= _UNRESOLVED_BATCHES_MAX:
            return  # the sweeper's
        self._unresolved.append(items)
        if self._resolving is None:
            self._resolving = asyncio.get_running_loop().create_task(self._keep_resolving(), name="commit resolving")

    async def _keep_resolving(self) -> None:
        pause_seconds = _RESOLVE_PAUSE_SECONDS
        try:
            while self._unresolved:
                items = self._unresolved[0]
                try:
                    fences = await self._ledger.fence([(i.promotion, i.request_id, i.admission) for i in items])
                except (LedgerAway, OutcomeUnknown):
                    await asyncio.sleep(pause_seconds)
                    pause_seconds = min(2 * pause_seconds, _RESOLVE_PAUSE_SECONDS_MAX)
                    continue
                except Exception:
                    _log.exception("unknown outcomes are left to the sweeper", extra={"items": len(items)})
                else:
                    results = [_resolved(item, *fence) for item, fence in zip(items, fences, strict=True)]
                    self._settle(_settlements(items, results))
                    pause_seconds = _RESOLVE_PAUSE_SECONDS
                self._unresolved.popleft()
        finally:
            self._resolving = None

    def _settle(self, settled: Iterable[tuple[CommitItem, SettleCode, int]]) -> None:
        by_group: dict[int, list[Settlement]] = defaultdict(list)
        for item, code, observed in settled:
            by_group[item.promotion].append(Settlement(item.admission, item.request_id, code, observed))
        for group, settlements in by_group.items():
            self._gate.settle(group, settlements)


def _units(items: Sequence[CommitItem]) -> list[list[int]]:
    """Indices that may not be separated: single items, and whole all-or-nothing groups."""
    units: list[list[int]] = []
    for i, item in enumerate(items):
        if item.group and i and items[i - 1].group == item.group:
            units[-1].append(i)
        else:
            units.append([i])
    return units


def _resolved(item: CommitItem, state: RequestState, admission: int) -> Committed:
    codes = {
        RequestState.GRANTED: CommitCode.EXISTS,
        RequestState.CANCELLED: CommitCode.CANCELLED,
        RequestState.FENCED: CommitCode.FENCED,
    }
    # `threshold` of EXISTS says whose grant it is.
    return CommitResult(codes[state], None, None, admission, item.admission, None)


def _settlements(
    items: Sequence[CommitItem], results: Sequence[Committed]
) -> Iterable[tuple[CommitItem, SettleCode, int]]:
    for item, result in zip(items, results, strict=True):
        if isinstance(result, ServiceError):
            if not isinstance(result, OutcomeUnknown):
                yield item, SettleCode.GIVEN_BACK, 0
            continue
        code = result.code
        if code == CommitCode.GRANTED:
            yield item, SettleCode.GRANTED, 0
        elif code == CommitCode.EXISTS:
            mine = result.observed == item.admission
            yield item, SettleCode.GRANTED if mine else SettleCode.REPLAYED, 0
        elif code == CommitCode.LIMIT_REACHED:
            yield item, SettleCode.GIVEN_BACK, result.observed or 0
        else:
            yield item, SettleCode.GIVEN_BACK, 0
