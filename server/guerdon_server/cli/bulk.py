"""Issuing from a file: batches in flight, repeated with the same request ids until they are answered."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from guerdon import AsyncClient, Granted, GuerdonError, ItemError, ItemOutcome, PendingOutcome, Rejected
from guerdon_server.cli.claims import Claim
from guerdon_server.cli.results import Outcome, Result

BATCH_BYTES_MAX: Final = 1 << 20  # a quarter of what servers take by default
_OPEN_BATCHES_MAX: Final = 64
_BACKOFF_SECONDS: Final = 0.2
_BACKOFF_SECONDS_MAX: Final = 5.0


@dataclass(slots=True)
class Tally:
    """What became of the lines so far; `reasons` counts (outcome, reason), `skipped` what an earlier run had."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    replayed: int = 0
    skipped: Counter[Outcome] = field(default_factory=Counter)

    def add(self, results: Iterable[Result]) -> None:
        for result in results:
            self.outcomes[result.outcome] += 1
            self.replayed += result.replayed
            if result.outcome != "granted":
                self.reasons[result.outcome, result.reason] += 1

    @property
    def lines(self) -> int:
        return self.outcomes.total() + self.skipped.total()


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkRun:
    """How to issue. `patience_seconds`: how long one batch is repeated while the server gives no answer or is busy.

    `record` gets the results of each batch as it is answered. When `stop` is set (and it sets it itself when
    patience ends without an answer), what is in flight is finished and nothing more is sent.
    """

    client: AsyncClient
    record: Callable[[Sequence[Result]], None]
    stop: asyncio.Event
    batch_items_max: int
    batches_in_flight_max: int
    patience_seconds: float

    async def issue(self, claims: Iterable[Claim]) -> None:
        """Sends all claims, in the order of the file as far as batches go."""
        in_flight: set[asyncio.Task[None]] = set()
        try:
            for batch in batches(claims, items_max=self.batch_items_max):
                while len(in_flight) >= self.batches_in_flight_max:
                    done, in_flight = await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                if self.stop.is_set():
                    break
                in_flight.add(asyncio.create_task(self._issue_batch(batch)))
            while in_flight:
                done, in_flight = await asyncio.wait(in_flight)
                for task in done:
                    task.result()
        finally:
            for task in in_flight:
                task.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)

    async def _issue_batch(self, batch: Sequence[Claim]) -> None:
        deadline = time.monotonic() + self.patience_seconds
        left, delay = batch, _BACKOFF_SECONDS
        while left:
            outcomes = await self._send(left)
            again = [pair for pair in zip(left, outcomes, strict=True) if _is_open(pair[1])]
            wait = max([delay, *(_asked_wait(outcome) for _, outcome in again)])
            if again and (self.stop.is_set() or time.monotonic() + wait > deadline):
                self.stop.set()  # the next batch would fare no better
                again = []
            repeated = {claim.line for claim, _ in again}
            decided = [pair for pair in zip(left, outcomes, strict=True) if pair[0].line not in repeated]
            self.record([result_of(claim, outcome) for claim, outcome in decided])
            left = [claim for claim, _ in again]
            if left:
                await _sleep_or(self.stop, wait)
                delay = min(delay * 2, _BACKOFF_SECONDS_MAX)

    async def _send(self, batch: Sequence[Claim]) -> Sequence[ItemOutcome]:
        try:
            return await self.client.batch_issue_prizes(
                promotion_id=batch[0].promotion_id,
                entrance_id=batch[0].entrance_id,
                items=[claim.item for claim in batch],
            )
        except GuerdonError as error:
            return [ItemError(error)] * len(batch)


def batches(claims: Iterable[Claim], *, items_max: int) -> Iterator[list[Claim]]:
    """Claims by promotion and entrance, at most so many and `BATCH_BYTES_MAX` bytes together."""
    forming: dict[tuple[str, str], list[Claim]] = {}
    sizes: Counter[tuple[str, str]] = Counter()
    for claim in claims:
        key = claim.promotion_id, claim.entrance_id
        if key in forming and sizes[key] + claim.bytes_estimated > BATCH_BYTES_MAX:
            yield forming.pop(key)
            del sizes[key]
        forming.setdefault(key, []).append(claim)
        sizes[key] += claim.bytes_estimated
        if len(forming[key]) < items_max:
            if len(forming) <= _OPEN_BATCHES_MAX:
                continue
            key = max(forming, key=lambda each: len(forming[each]))
        yield forming.pop(key)
        del sizes[key]
    yield from forming.values()


def result_of(claim: Claim, outcome: ItemOutcome) -> Result:
    """What the results file says of one outcome."""
    if isinstance(outcome, Granted):
        return Result(claim.line, *claim.key, "granted", "", outcome.issuance.issuance_id, outcome.replayed)
    if isinstance(outcome, Rejected):
        return Result(claim.line, *claim.key, "rejected", outcome.reason.value, message=outcome.message)
    if isinstance(outcome, PendingOutcome):
        return Result(claim.line, *claim.key, "pending", message="an earlier attempt is still in flight")
    error = outcome.error
    word: Outcome = "unknown" if error.outcome_unknown else "error"
    text = "; ".join([error.message, *(f"{v.field}: {v.description}" for v in error.field_violations)])
    return Result(claim.line, *claim.key, word, error.reason or error.code.name, message=text)


def _is_open(outcome: ItemOutcome) -> bool:
    return isinstance(outcome, PendingOutcome) or (isinstance(outcome, ItemError) and outcome.error.retryable)


def _asked_wait(outcome: ItemOutcome) -> float:
    if isinstance(outcome, PendingOutcome):
        return outcome.retry_after_ms / 1000
    return (outcome.error.retry_after_seconds or 0.0) if isinstance(outcome, ItemError) else 0.0


async def _sleep_or(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return
