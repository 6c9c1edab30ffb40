"""Moves units between the buckets of a promotion, and tells when none is left in any."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from guerdon_server.core.stock.buckets import tags
from guerdon_server.core.stock.model import EXACT_MAX, AdmitCode, AdmitItem, Answer, Epoch, Share
from guerdon_server.core.stock.redis.store import RedisGate
from guerdon_server.platform.redis import RedisUnavailable

_Reply = TypeVar("_Reply")
_ROUNDS_MAX = 16


class BucketClosed(Exception):
    """A bucket is not open under the epoch: its units can't be counted, and a new epoch is to be opened."""


class _Round(NamedTuple):
    """What one look at all buckets found. shares: by resource, of each bucket, None where it could not be asked."""

    shares: Mapping[int, Sequence[Share | None]]
    arrived: frozenset[int]
    """Resources of which units came to the target."""
    delivered: frozenset[int]
    """Resources of which units came to any bucket."""


class Exchange:
    """Moves units between the buckets of promotions. Every move is under an epoch, in two steps: see give.lua.

    All methods raise BucketClosed. For metrics, `moved_units` only grows.
    """

    def __init__(self, store: RedisGate) -> None:
        self.moved_units = 0
        self._store = store
        # By group and resource: the last look at all buckets at which nothing was to be had.
        self._empty: dict[tuple[int, int], object] = {}

    async def help(
        self, group: int, epoch: Epoch, bucket: int, items: Sequence[AdmitItem], answers: Sequence[Answer]
    ) -> Sequence[Answer]:
        """What a bucket answers to a batch that it has refused in part, after it got what the others can spare.

        An item stays REFUSED if there was a moment of this call at which no bucket had units left (and this one fewer
        than the item asks for). Where that can't be known, a bucket being away, it is UNKNOWN_RESOURCE.
        Raises RedisUnavailable if this bucket is away.
        """
        found = list(answers)
        certain: set[int] = set()
        unknown: set[int] = set()
        owed: dict[int, int] = {}
        for _ in range(_ROUNDS_MAX):
            short = _short(items, found, certain | unknown)
            if not short:
                break
            wanted = {resource: sum(amounts) + owed.get(resource, 0) for resource, amounts in short.items()}
            before = {resource: self._empty.get((group, resource)) for resource in short}
            round_ = await self._round(group, epoch, bucket, wanted)
            more: set[int] = set()
            for resource, amounts in short.items():
                shares = round_.shares[resource]
                own = shares[bucket]
                owed[resource] = max(0, -own.free) if own else 0
                if resource in round_.arrived or (own and own.free >= min(amounts)):
                    more.add(resource)
                elif None in shares:
                    unknown.add(resource)
                elif resource not in round_.delivered and not _others_have(shares, bucket):
                    # Unchanged since a look that was over before this one began: so it was all there was when it began.
                    view = self._empty[group, resource] = (epoch.value, *shares)
                    if view == before[resource]:
                        certain.add(resource)
            if more:
                certain -= await self._again(group, epoch, bucket, items=items, answers=found, resources=more)
        return [
            Answer(epoch.value, AdmitCode.UNKNOWN_RESOURCE, sure=True, resource=answer.resource)
            if answer.code is AdmitCode.REFUSED and answer.resource not in certain
            else answer
            for answer in found
        ]

    async def level(self, group: int, epoch: Epoch, resources: Iterable[int]) -> int:
        """Deliver what is on its way, and pay what the first bucket owes since a recall.

        Returns how many units were received that no bucket has given, or by how much totals are used up: a new epoch is
        to be opened unless that is 0. Raises RedisUnavailable if a bucket is away, after the others have got theirs.
        """
        round_ = await self._round(group, epoch, 0, dict.fromkeys(resources, 0))
        owed = {r: -shares[0].free for r, shares in round_.shares.items() if shares[0] and shares[0].free < 0}
        if owed:
            await self._round(group, epoch, 0, owed)
        if any(None in shares for shares in round_.shares.values()):
            raise RedisUnavailable("a bucket could not be asked")
        if not any(_excess(shares, shares) for shares in round_.shares.values()):
            return 0
        # Read one after the other, so it may only look so: what was given is read again, later than what was received.
        later = await self._round(group, epoch, 0, dict.fromkeys(round_.shares, 0))
        return max(_excess(shares, later.shares[resource]) for resource, shares in round_.shares.items())

    async def _round(self, group: int, epoch: Epoch, target: int, wanted: Mapping[int, int]) -> _Round:
        """Have all give to the target, and deliver all that is on its way anywhere."""
        groups = tags(group, epoch.buckets)
        nothing = dict.fromkeys(wanted, 0)
        replies = await asyncio.gather(
            *(
                self._store.give(
                    tag,
                    epoch=epoch.value,
                    run_id=run_id,
                    buckets=epoch.buckets,
                    target=target,
                    wanted=nothing if bucket == target else wanted,
                )
                for bucket, (tag, run_id) in enumerate(zip(groups, epoch.run_ids, strict=True))
            ),
            return_exceptions=True,
        )
        told = [_or_none(reply) for reply in replies]
        shares = {resource: [share[resource] if share else None for share in told] for resource in wanted}
        arriving = _on_their_way(shares)
        delivered = await asyncio.gather(
            *(
                self._store.receive(
                    groups[bucket], epoch=epoch.value, run_id=epoch.run_ids[bucket], deliveries=deliveries
                )
                for bucket, deliveries in arriving.items()
            ),
            return_exceptions=True,
        )
        for bucket, reply in zip(arriving, delivered, strict=True):
            if isinstance(reply, RedisUnavailable) and bucket == target:
                raise reply
            self.moved_units += _or_none(reply) or 0
        return _Round(
            shares,
            arrived=frozenset(resource for resource, _, _ in arriving.get(target, ())),
            delivered=frozenset(resource for deliveries in arriving.values() for resource, _, _ in deliveries),
        )

    async def _again(
        self,
        group: int,
        epoch: Epoch,
        bucket: int,
        *,
        items: Sequence[AdmitItem],
        answers: list[Answer],
        resources: set[int],
    ) -> set[int]:
        """Ask once more for those that were refused one of these; returns what they are refused now."""
        places = [at for at, answer in enumerate(answers) if _is_refused(answer) and answer.resource in resources]
        replies = await self._store.admit(
            tags(group, epoch.buckets)[bucket],
            epoch=epoch.value,
            run_id=epoch.run_ids[bucket],
            items=[items[at] for at in places],
        )
        if replies is None:
            raise BucketClosed
        for at, answer in zip(places, replies, strict=True):
            answers[at] = answer
        return {answer.resource for answer in replies if _is_refused(answer)}


def _is_refused(answer: Answer) -> bool:
    return answer.code is AdmitCode.REFUSED


def _short(items: Sequence[AdmitItem], answers: Sequence[Answer], decided: set[int]) -> Mapping[int, list[int]]:
    """By resource: the amounts that items were refused."""
    short: dict[int, list[int]] = defaultdict(list)
    for item, answer in zip(items, answers, strict=True):
        if _is_refused(answer) and answer.resource not in decided:
            short[answer.resource].append(dict(item.claims)[answer.resource])
    return short


def _others_have(shares: Sequence[Share | None], bucket: int) -> bool:
    return any(share is not None and share.free > 0 for at, share in enumerate(shares) if at != bucket)


def _on_their_way(shares: Mapping[int, Sequence[Share | None]]) -> Mapping[int, list[tuple[int, int, int]]]:
    """By bucket: (resource, source, total) of what it was given and has not received."""
    found: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for resource, of_resource in shares.items():
        for source, giver in enumerate(of_resource):
            for target, taker in enumerate(of_resource):
                if giver and taker and giver.given[target] > taker.received[source]:
                    found[target].append((resource, source, giver.given[target]))
    return found


def _excess(shares: Sequence[Share | None], later: Sequence[Share | None]) -> int:
    """Units received by `shares` that were not given by `later`, or by which the greatest total is used up."""
    excess = 0
    for target, taker in enumerate(shares):
        for source, giver in enumerate(later):
            if giver and taker:
                excess = max(excess, taker.received[source] - giver.given[target], giver.given[target] - EXACT_MAX // 2)
    return excess


def _or_none(reply: _Reply | BaseException | None) -> _Reply | None:
    """None where Redis did not answer."""
    if isinstance(reply, RedisUnavailable):
        return None
    if isinstance(reply, BaseException):
        raise reply
    if reply is None:
        raise BucketClosed
    return reply
