"""redis-py with failpoints: an I/O has the name of its script or command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis.asyncio as aioredis
from redis import exceptions as errors
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import AbstractConnection

from guerdon_server.platform.failpoints import Failpoints


def client_class(
    points: Failpoints, *, script_name: Callable[[str], str], answer_seconds_max: float
) -> type[aioredis.Redis]:
    """A client whose calls and connections pass the points; a pipeline passes those of all calls that it holds.

    `script_name`: of a digest. The points of calls are around the driver's own repetitions: an error there is one that
    it has given up on. `redis.connect` is inside of them.
    """

    def names(*command: Any) -> str:
        verb, what = str(command[0]).lower().replace(" ", "_"), ""
        if verb == "evalsha":
            verb, what = script_name(str(command[1])).replace(" ", "."), ""
        return f"redis.{verb}{what}"

    class WatchedPipeline(Pipeline):
        async def execute(self, raise_on_error: bool = True) -> list[Any]:
            async def call() -> list[Any]:
                return await super(WatchedPipeline, self).execute(raise_on_error)

            held = list(dict.fromkeys(names(*arguments) for arguments, _ in self.command_stack))
            return await points.around(held, call, what="pipeline", broken=_broken, patience_seconds=answer_seconds_max)

    class Client(aioredis.Redis):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            pool = self.connection_pool
            pool.connection_class = _connection_class(points, pool.connection_class)

        async def execute_command(self, *command: Any, **options: Any) -> Any:
            async def call() -> Any:
                return await super(Client, self).execute_command(*command, **options)  # type: ignore[no-untyped-call]

            name = names(*command)
            return await points.around([name], call, what=name, broken=_broken, patience_seconds=answer_seconds_max)

        def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
            return WatchedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)

        async def aclose(self, close_connection_pool: bool | None = None) -> None:
            async def call() -> None:
                await super(Client, self).aclose(close_connection_pool)

            await points.around(["redis.close"], call, what="close", broken=_broken)

    return Client


def _connection_class(points: Failpoints, driver: type[AbstractConnection]) -> type[AbstractConnection]:
    class Connection(driver):  # type: ignore[misc, valid-type]
        async def connect_check_health(self, *arguments: Any, **options: Any) -> None:
            async def call() -> None:
                await super(Connection, self).connect_check_health(*arguments, **options)

            if not self.is_connected:
                try:
                    await points.around(["redis.connect"], call, what="connect", broken=_broken)
                except BaseException:
                    await self.disconnect(nowait=True)
                    raise

    return Connection


def _broken(point: str) -> Exception:
    return errors.ConnectionError(f"failpoint {point}")
