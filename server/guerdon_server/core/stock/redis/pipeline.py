"""Script calls of many groups in one round trip: a client call costs more CPU than most of the scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from redis import exceptions

from guerdon_server.platform.batching import Coalescer
from guerdon_server.platform.redis import Client, RedisUnavailable, Script, Value

_CALLS_MAX = 32
_IN_FLIGHT_MAX = 4
# Each caller has few calls under way (a group's coalescer, the settle queue), so this is out of reach.
_QUEUED_MAX = 100_000


class ScriptCall(NamedTuple):
    """One EVALSHA."""

    script: Script
    keys: Sequence[str]
    arguments: Sequence[Value]


class ScriptPipeline:
    """Sends what is called in the same moment in one pipeline, each call with its own outcome.

    Calls may run in any order, and twice when a reply gets lost: the scripts are idempotent.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._calls: Coalescer[ScriptCall, Any] = Coalescer(
            self._run,
            items_max=_CALLS_MAX,
            in_flight_max=_IN_FLIGHT_MAX,
            queue_items_max=_QUEUED_MAX,
            name="gate scripts",
            quiet_ticks=1,  # the callers have gathered
            ticks_max=1,
        )

    async def __call__(self, script: Script, keys: Sequence[str], arguments: Sequence[Value]) -> Any:
        """The raw reply. Raises what `Script` raises."""
        (outcome,) = await self._calls.submit((ScriptCall(script, keys, arguments),))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _run(self, calls: list[ScriptCall]) -> Sequence[Any]:
        if len(calls) == 1:
            return [await self._one(calls[0])]
        pipeline = self._client.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command("EVALSHA", call.script.digest, len(call.keys), *call.keys, *call.arguments)
        try:
            outcomes = await pipeline.execute(raise_on_error=False)
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
            raise RedisUnavailable(f"{len(calls)} scripts: {type(error).__name__}: {error}") from error
        # What was refused had no effect, so it is called once more alone: that loads the script, or words the refusal.
        return [
            await self._one(call) if isinstance(outcome, exceptions.RedisError) else outcome
            for call, outcome in zip(calls, outcomes, strict=True)
        ]

    async def _one(self, call: ScriptCall) -> Any:
        try:
            return await call.script(self._client, call.keys, call.arguments)
        except Exception as error:
            return error
