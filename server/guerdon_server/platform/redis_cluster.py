"""A Redis Cluster: its nodes behind a client each, and which of them answers for a key.

Not redis-py's own cluster client: docs/adr/0015 says what that one does under load. Parsing replies and errors, TLS,
users and connections are redis-py's here, too.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from redis import exceptions as errors
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from guerdon_server.platform.redis import UNAVAILABLE, Client, RedisUnavailable, T
from guerdon_server.platform.redis_url import Address

_log = logging.getLogger(__name__)

_HOPS_MAX = 8  # a slot that is being moved: MOVED, ASK, and TRYAGAIN while its keys are on both sides
_TRY_AGAIN_SECONDS = 0.05
_LOOK_PAUSE_SECONDS = 0.1
_UNUSED_SECONDS_MAX = 60.0


class Cluster:
    """`platform.redis.Router`. Every key of a command has to be in one slot (one hash tag).

    The map of slots is read at the first use from one of the `seeds`, and again, in the background, whenever a node
    redirects, fails or doesn't answer: a call is never repeated because of that, its caller hears RedisUnavailable and
    the next one goes by the new map. A redirection is followed at once. Belongs to one event loop.
    """

    def __init__(
        self,
        seeds: Sequence[Address],
        connect: Callable[[Address], Client],
        *,
        unused_seconds_max: float = _UNUSED_SECONDS_MAX,
    ) -> None:
        """`unused_seconds_max`: how long the connections to a node that has left are kept."""
        self._seeds = seeds
        self._connect = connect
        self._unused_seconds_max = unused_seconds_max
        self._clients: dict[Address, Client] = {}
        self._used_at: dict[Address, float] = {}
        self._owners: list[Address | None] = []
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = 0.0
        self._doubted: Address | None = None

    # --- who answers ----------------------------------------------------------------------------------------------

    async def routed(self, key: str | bytes, work: Callable[[Client, bool], Awaitable[T]]) -> T:
        asked: Address | None = None
        for _ in range(_HOPS_MAX):
            address = asked or await self.owner(key)
            try:
                return await work(self.client(address), asked is not None)
            except errors.MovedError as error:
                asked = None
                self._moved(error, address)
            except errors.AskError as error:
                asked = _redirected(error, address)
            except errors.TryAgainError:
                asked = None
                await asyncio.sleep(_TRY_AGAIN_SECONDS)
            except UNAVAILABLE:
                self.doubt(address)
                raise
        raise RedisUnavailable(f"slot {_slot(key)} is being moved: sent on {_HOPS_MAX} times")

    async def owner(self, key: str | bytes) -> Address:
        """Who owns the key's slot by the map. Raises RedisUnavailable."""
        if not self._owners:
            await asyncio.shield(self._look())
        slot = _slot(key)
        address = self._owners[slot]
        if address is None:
            self.doubt()
            raise RedisUnavailable(f"no node of the cluster serves slot {slot}")
        return address

    def client(self, address: Address) -> Client:
        """Of one node. Don't keep it: that of a node which has left the cluster is closed."""
        self._used_at[address] = asyncio.get_running_loop().time()
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = self._connect(address)
        return client

    @property
    def primaries(self) -> set[Address]:
        """Who owns slots by the map; empty before the first use."""
        return {address for address in self._owners if address is not None}

    def doubt(self, address: Address | None = None) -> None:
        """The map may be wrong (that node fails): it is read again, in the background."""
        self._doubted = address
        loop = asyncio.get_running_loop()
        if self._looking is None and loop.time() >= self._looked_at + _LOOK_PAUSE_SECONDS:
            self._look()

    def _moved(self, error: errors.MovedError, by: Address) -> None:
        self._owners[error.slot_id] = _redirected(error, by)
        self.doubt()  # where one slot has moved others have, too

    # --- the map --------------------------------------------------------------------------------------------------

    def _look(self) -> asyncio.Task[None]:
        """One at a time, whoever waits for it."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._read_map(), name="redis cluster map")
            self._looking.add_done_callback(self._looked)
        return self._looking

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        self._looked_at = task.get_loop().time()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("the map of the Redis Cluster can't be read", extra={"why": str(error)})

    async def _read_map(self) -> None:
        """From the first node that knows an owner of every slot, else by the fullest map. Raises RedisUnavailable."""
        maps: list[list[Address | None]] = []
        why = "no address"
        for address in self._askable():
            try:
                reply = await self.client(address).execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
            except errors.ResponseError as error:
                why = f"{address[0]}:{address[1]}: {error}"
                if "cluster support disabled" in str(error):
                    why += ": it is no node of a cluster, so redis_url has to begin with redis:// (or rediss://)"
            except UNAVAILABLE as error:
                why = f"{address[0]}:{address[1]}: {type(error).__name__}: {error}"
            else:
                maps.append(_owners(reply, address))
                if None not in maps[-1]:
                    break
        if not maps:
            raise RedisUnavailable(f"no node of the cluster tells who serves what; the last: {why}")
        self._owners = min(maps, key=lambda owners: owners.count(None))
        await self._close_unused()

    def _askable(self) -> Iterable[Address]:
        """All that are known, in any order, the one in doubt last."""
        known = list(dict.fromkeys([*self.primaries, *self._seeds]))
        random.shuffle(known)
        return sorted(known, key=lambda address: address == self._doubted)

    async def _close_unused(self) -> None:
        """Nodes that left. One that is about to get its first slots is asked before it is on the map: not at once."""
        kept = self.primaries | set(self._seeds)
        now = asyncio.get_running_loop().time()
        for address, used_at in list(self._used_at.items()):
            if address not in kept and now - used_at > self._unused_seconds_max:
                del self._used_at[address]
                await self._clients.pop(address).aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        if (looking := self._looking) is not None:
            looking.cancel()
            await asyncio.wait({looking})
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))


def _slot(key: str | bytes) -> int:
    return key_slot(key.encode() if isinstance(key, str) else key)


def _redirected(error: errors.AskError, by: Address) -> Address:
    return error.host or by[0], error.port  # no host: that of whoever answers


def _owners(reply: Sequence[Any], by: Address) -> list[Address | None]:
    """Of each slot, from CLUSTER SLOTS: [first, last, [host, port, ...], replicas ...] for each range."""
    owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
    for first, last, (host, port, *_), *_ in reply:
        address = (host.decode() if host else by[0], port)
        owners[first : last + 1] = [address] * (last + 1 - first)
    return owners
