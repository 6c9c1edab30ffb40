"""Redis or Valkey: bounded connections, and Lua scripts called by their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import redis.asyncio as aioredis
from redis import exceptions as errors
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

if TYPE_CHECKING:
    from guerdon_server.platform.failpoints import Failpoints

Client: TypeAlias = aioredis.Redis
Value: TypeAlias = str | bytes | int

_script_names: dict[str, str] = {}  # by digest, for failpoints

# "Not now" in all its forms: the caller may ask again, and must not conclude anything about the data.
_UNAVAILABLE = (
    errors.ConnectionError,  # includes loading and authentication
    errors.TimeoutError,
    errors.ReadOnlyError,
    errors.OutOfMemoryError,
    errors.ClusterDownError,
    errors.MasterDownError,
    errors.TryAgainError,
    OSError,
)


class RedisUnavailable(Exception):
    """No answer, or the answer "not now". A script that was sent may have run or may yet run."""


def connect(
    url: str,
    *,
    connections_max: int = 64,
    answer_seconds_max: float = 2.0,
    connect_seconds_max: float = 1.0,
    reconnects_max: int = 1,
    client_name: str = "guerdon",
    on_connect: Callable[[AbstractConnection], Awaitable[None]] | None = None,
    failpoints: Failpoints | None = None,
) -> Client:
    """A client for `redis://…`, `rediss://…` or `unix://…`; connects at first use; close it with `aclose()`.

    Replies are bytes. Nothing waits without a limit: `connect_seconds_max` for a connection, `answer_seconds_max` for
    a reply, and beyond `connections_max` calls at once the next fails at once. A call whose connection broke is sent
    again on a new one `reconnects_max` times without a pause (redis-py's default is 10 with pauses, for time-outs
    too); one that got no answer in time is not. **So a script can run twice for one call**: scripts must be idempotent
    by an id that the caller gives. `on_connect` runs on every new connection after the handshake and before its first
    call, for example to read the run id; if it raises, the call fails. With `failpoints` (tests) its I/O passes them.
    """
    options: dict[str, Any] = {}
    if on_connect is not None:

        async def shake_hands(connection: AbstractConnection) -> None:
            await connection.on_connect()
            await on_connect(connection)

        options["redis_connect_func"] = shake_hands
    client_class = aioredis.Redis
    if failpoints is not None:
        from guerdon_server.platform import redis_failpoints  # noqa: PLC0415  never loaded in production

        client_class = redis_failpoints.client_class(
            failpoints, script_name=_script_names.__getitem__, answer_seconds_max=answer_seconds_max
        )
    return client_class.from_url(
        url,
        protocol=2,
        decode_responses=False,
        max_connections=connections_max,
        socket_timeout=answer_seconds_max,
        socket_connect_timeout=connect_seconds_max,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), reconnects_max, supported_errors=(errors.ConnectionError,)),
        client_name=client_name,
        **options,
    )


async def is_healthy(client: Client) -> bool:
    """Whether it answers a PING within the client's limits."""
    try:
        return bool(await call(client, "PING"))
    except RedisUnavailable:
        return False


async def call(client: Client, *command: Value) -> Any:
    """One command; the raw reply. Raises RedisUnavailable, or redis.exceptions.ResponseError for a refusal."""
    try:
        return await client.execute_command(*command)  # type: ignore[no-untyped-call]
    except _UNAVAILABLE as error:
        raise RedisUnavailable(f"{command[0]!r}: {type(error).__name__}: {error}") from error


class Script:
    """One Lua file. Call it: `await script(client, keys, arguments)`; the raw reply (bytes, int, list, None).

    Runs by digest; a server that lost its script cache is given the text again. Raises RedisUnavailable, or
    redis.exceptions.ResponseError when the script itself fails (a defect).
    """

    __slots__ = ("digest", "name", "source")

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        _script_names[self.digest] = name

    @classmethod
    def load(cls, package: str, path: str) -> Self:
        """From the resources of a package: `Script.load("guerdon_server.core.stock", "lua/admit.lua")`."""
        return cls(path, files(package).joinpath(path).read_text(encoding="utf-8"))

    async def __call__(self, client: Client, keys: Sequence[str | bytes], arguments: Sequence[Value] = ()) -> Any:
        run = ("EVALSHA", self.digest, len(keys), *keys, *arguments)
        try:
            return await client.execute_command(*run)  # type: ignore[no-untyped-call]
        except errors.NoScriptError:
            pass
        except _UNAVAILABLE as error:
            raise RedisUnavailable(f"{self.name}: {type(error).__name__}: {error}") from error
        # Loaded and not just EVALed: newer servers evict scripts that only EVAL brought.
        await call(client, "SCRIPT LOAD", self.source)
        try:
            return await client.execute_command(*run)  # type: ignore[no-untyped-call]
        except (errors.NoScriptError, *_UNAVAILABLE) as error:
            raise RedisUnavailable(f"{self.name}: {type(error).__name__}: {error}") from error
