"""Script calls of many groups in one round trip: a client call costs more CPU than most of the scripts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from redis import exceptions

from guerdon_server.platform.batching import Coalescer
from guerdon_server.platform.redis import AnyClient, Client, RedisUnavailable, Script, Value
from guerdon_server.platform.redis_cluster import Cluster
from guerdon_server.platform.redis_url import Address

_CALLS_MAX = 32
_IN_FLIGHT_MAX = 4
_ALONE_AT_ONCE = 8
# Each caller has few calls under way (a group's coalescer, the settle queue), so this is out of reach.
_QUEUED_MAX = 100_000


class ScriptCall(NamedTuple):
    """One EVALSHA."""

    script: Script
    keys: Sequence[str]
    arguments: Sequence[Value]


class ScriptPipeline:
    """Sends what is called in the same moment in one pipeline to each server, each call with its own outcome.

    Calls may run in any order, and twice when a reply gets lost: the scripts are idempotent. In a cluster each node has
    pipelines of its own, so that one that stands still holds up no other's groups.
    """

    def __init__(self, client: AnyClient) -> None:
        self._client = client
        self._lanes: dict[Address, Coalescer[ScriptCall, Any]] = {}
        self._only = _lane(partial(self._run, client)) if isinstance(client, Client) else None

    async def __call__(self, script: Script, keys: Sequence[str], arguments: Sequence[Value]) -> Any:
        """The raw reply. Raises what `Script` raises."""
        lane = self._only or await self._lane_of(keys[0])
        (outcome,) = await lane.submit((ScriptCall(script, keys, arguments),))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _lane_of(self, key: str) -> Coalescer[ScriptCall, Any]:
        """That of the node which owns the key now; if it moves meanwhile, the node itself sends the call on."""
        assert isinstance(self._client, Cluster)
        address = await self._client.owner(key)
        lane = self._lanes.get(address)
        if lane is None:
            self._forget_nodes_that_left()
            lane = self._lanes[address] = _lane(partial(self._run_at, self._client, address))
        return lane

    def _forget_nodes_that_left(self) -> None:
        assert isinstance(self._client, Cluster)
        for address in self._lanes.keys() - self._client.primaries:
            if not self._lanes[address].queued_items and not self._lanes[address].in_flight:
                del self._lanes[address]

    async def _run_at(self, cluster: Cluster, address: Address, calls: list[ScriptCall]) -> Sequence[Any]:
        if len(calls) == 1:
            return [await self._one(calls[0])]
        try:
            return await self._run(cluster.client(address), calls)
        except RedisUnavailable:
            cluster.doubt(address)
            raise

    async def _run(self, client: Client, calls: list[ScriptCall]) -> Sequence[Any]:
        if len(calls) == 1:
            return [await self._one(calls[0])]
        pipeline = client.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command("EVALSHA", call.script.digest, len(call.keys), *call.keys, *call.arguments)
        try:
            outcomes = await pipeline.execute(raise_on_error=False)
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
            raise RedisUnavailable(f"{len(calls)} scripts: {type(error).__name__}: {error}") from error
        # What was refused had no effect, so it is called once more alone: that loads the script, follows the group to
        # another node, or words the refusal.
        refused = [at for at, outcome in enumerate(outcomes) if isinstance(outcome, exceptions.RedisError)]
        for first in range(0, len(refused), _ALONE_AT_ONCE):
            some = refused[first : first + _ALONE_AT_ONCE]
            for at, outcome in zip(some, await asyncio.gather(*(self._one(calls[at]) for at in some)), strict=True):
                outcomes[at] = outcome
        return outcomes

    async def _one(self, call: ScriptCall) -> Any:
        try:
            return await call.script(self._client, call.keys, call.arguments)
        except Exception as error:
            return error


def _lane(run: Callable[[list[ScriptCall]], Awaitable[Sequence[Any]]]) -> Coalescer[ScriptCall, Any]:
    return Coalescer(
        run,
        items_max=_CALLS_MAX,
        in_flight_max=_IN_FLIGHT_MAX,
        queue_items_max=_QUEUED_MAX,
        name="gate scripts",
        quiet_ticks=1,  # the callers have gathered
        ticks_max=1,
    )
