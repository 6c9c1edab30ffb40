"""Stock buckets: the gate of one promotion as several groups, each at a Redis process of its own.

A request belongs to one bucket, by its id, whoever asks for it and how often. The first bucket begins with all that
there is; units go from one to another when one of them runs out (exchange.py). Pure.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from functools import lru_cache
from zlib import crc32

from guerdon_server.core.stock.model import Epoch, GateState, ResourceState, Tag

BUCKETS_MAX = 32
_SLOTS = 16384  # of a Redis Cluster: CRC-16 of the hash tag, modulo


def bucket_of(request_id: str, buckets: int) -> int:
    """The bucket of a request, from 0: the same for every server and version."""
    return crc32(request_id.encode()) % buckets if buckets > 1 else 0


@lru_cache(maxsize=10_000)
def tags(group: int, buckets: int) -> Sequence[Tag]:
    """The hash tags of a promotion's buckets; the first is the promotion's own.

    Their slots have equal distances, so that as many primaries with equal ranges of slots own one each.
    """
    first = crc_hqx(str(group).encode(), 0)
    wanted = {(first + bucket * _SLOTS // buckets) % _SLOTS: bucket for bucket in range(1, buckets)}
    found: list[Tag] = [group] * buckets
    prefix = crc_hqx(f"{group}.".encode(), 0)
    number = 0
    while wanted:
        bucket = wanted.pop(crc_hqx(str(number).encode(), prefix) % _SLOTS, 0)
        if bucket:
            found[bucket] = f"{group}.{number}"
        number += 1
    return tuple(found)


def merged(states: Sequence[GateState]) -> GateState:
    """All buckets of a promotion as if they were one group; open only if all are, under the same epoch.

    Capacity is what the buckets have and what is on its way between them. It exceeds the ledger's where a bucket has
    received what no other has given.
    """
    if len(states) == 1:
        return states[0]
    sums: dict[int, ResourceState] = {}
    for state in states:
        for r in state.resources:
            s = sums.get(r.resource, ResourceState(r.resource, 0, 0, 0))
            sums[r.resource] = ResourceState(
                r.resource, s.capacity + r.capacity, max(s.version, r.version), s.used + r.used, s.net + r.net
            )
    ages = [state.backfill_age_ms for state in states if state.backfill_age_ms is not None]
    return GateState(
        run_id=",".join(state.run_id for state in states),
        open_epoch=_common(state.open_epoch for state in states),
        loading_epoch=_common(state.loading_epoch for state in states),
        complete=all(state.complete for state in states),
        open_admissions=sum(state.open_admissions for state in states),
        backfill_cursor=min(state.backfill_cursor for state in states),
        backfill_age_ms=min(ages) if ages else None,
        resources=[
            ResourceState(s.resource, s.capacity + max(s.net, 0), s.version, s.used, s.net) for s in sums.values()
        ],
    )


def _common(epochs: Iterable[int | None]) -> int | None:
    """The epoch of all, if it is that of all."""
    different = set(epochs)
    return different.pop() if len(different) == 1 else None


def nothing_of(resources: Iterable[ResourceState]) -> Sequence[ResourceState]:
    """What a further bucket begins with."""
    return [ResourceState(state.resource, 0, 0, 0) for state in resources]


def run_id_of(states: Iterable[GateState | None]) -> str:
    """Of the epoch that is opened on what answers now; empty for a bucket that is away."""
    return ",".join(state.run_id if state else "" for state in states)


def is_open(current: Epoch, states: Sequence[GateState | None]) -> bool:
    """Whether all buckets that can be asked are open under the current epoch."""
    return all(
        state is None or (state.open_epoch == current.value and state.run_id == run_id)
        for state, run_id in zip(states, current.run_ids, strict=True)
    )


def is_broken(current: Epoch, states: Sequence[GateState | None], used_epoch: int | None) -> bool:
    """Whether Redis will not open under the current epoch by itself, so that there is nothing to wait for.

    We have admitted under it, or tried to load it, and now it is closed; or it was loaded on another process and we
    are new here; or on none, because the bucket was away, or the number of buckets was set. Else it may be another
    worker's rebuild under way, or two workers see two Redis processes (a split): then neither may take the epoch from
    the other as fast as it can.
    """
    if current.value == used_epoch:
        return True
    return any(
        state is not None
        and (not run_id or (state.loading_epoch != current.value and used_epoch is None and run_id != state.run_id))
        for state, run_id in zip(states, current.run_ids, strict=True)
    )
