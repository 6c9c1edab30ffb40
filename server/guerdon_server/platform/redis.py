"""Redis or Valkey: bounded connections, and Lua scripts called by their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, TypeVar

import redis.asyncio as aioredis
from redis import exceptions as errors
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

if TYPE_CHECKING:
    from guerdon_server.platform.failpoints import Failpoints

T = TypeVar("T")
Client: TypeAlias = aioredis.Redis
Value: TypeAlias = str | bytes | int

CONNECTIONS_MAX = 64
ANSWER_SECONDS_MAX = 2.0
CONNECT_SECONDS_MAX = 1.0

_script_names: dict[str, str] = {}  # by digest, for failpoints

# "Not now" in all its forms: the caller may ask again, and must not conclude anything about the data.
UNAVAILABLE = (
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


class Router(Protocol):
    """Several servers, of which one answers for a key at a time: a cluster."""

    async def routed(self, key: str | bytes, work: Callable[[Client, bool], Awaitable[T]]) -> T:
        """Does `work(client, asking)` at the server that answers for the key, again where that one sends it on.

        asking: its command has to be preceded by ASKING on the same connection (`send`). Raises what `work` raises, and
        RedisUnavailable.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


AnyClient: TypeAlias = Client | Router


def connect(
    url: str,
    *,
    connections_max: int = CONNECTIONS_MAX,
    answer_seconds_max: float = ANSWER_SECONDS_MAX,
    connect_seconds_max: float = CONNECT_SECONDS_MAX,
    reconnects_max: int = 1,
    client_name: str = "guerdon",
    on_connect: Callable[[AbstractConnection], Awaitable[None]] | None = None,
    failpoints: Failpoints | None = None,
) -> Client:
    """A client of one server: `redis://…`, `rediss://…`, `unix://…`; close it with `aclose()`.

    Others are for platform.redis_deployment. Connects at first use. Replies are bytes. Nothing waits without a limit:
    `connect_seconds_max` for a connection, `answer_seconds_max` for a reply, and beyond `connections_max` calls at once
    the next fails at once. A call whose connection broke is sent again on a new one `reconnects_max` times without a
    pause (redis-py's default is 10 with pauses, for time-outs
    too); one that got no answer in time is not. **So a script can run twice for one call**: scripts must be idempotent
    by an id that the caller gives. `on_connect` runs on every new connection after the handshake and before its first
    call, for example to read the run id; if it raises, the call fails. With `failpoints` (tests) its I/O passes them.
    """
    options = connection_options(
        answer_seconds_max=answer_seconds_max,
        connect_seconds_max=connect_seconds_max,
        reconnects_max=reconnects_max,
        client_name=client_name,
    )
    if on_connect is not None:

        async def shake_hands(connection: AbstractConnection) -> None:
            await connection.on_connect()
            await on_connect(connection)

        options["redis_connect_func"] = shake_hands
    driver = client_class(failpoints, answer_seconds_max=answer_seconds_max)
    return driver.from_url(url, max_connections=connections_max, **options)


def connection_options(
    *,
    answer_seconds_max: float = ANSWER_SECONDS_MAX,
    connect_seconds_max: float = CONNECT_SECONDS_MAX,
    reconnects_max: int = 1,
    client_name: str = "guerdon",
) -> dict[str, Any]:
    """What every connection has, as redis-py's arguments."""
    return {
        "protocol": 2,
        "decode_responses": False,
        "socket_timeout": answer_seconds_max,
        "socket_connect_timeout": connect_seconds_max,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), reconnects_max, supported_errors=(errors.ConnectionError,)),
        "client_name": client_name,
    }


def client_class(failpoints: Failpoints | None, *, answer_seconds_max: float = ANSWER_SECONDS_MAX) -> type[Client]:
    """redis-py's own, or with `failpoints` one whose I/O passes them."""
    if failpoints is None:
        return aioredis.Redis
    from guerdon_server.platform import redis_failpoints  # noqa: PLC0415  never loaded in production

    return redis_failpoints.client_class(
        failpoints, script_name=_script_names.__getitem__, answer_seconds_max=answer_seconds_max
    )


async def is_healthy(client: Client) -> bool:
    """Whether it answers a PING within the client's limits."""
    try:
        return bool(await call(client, "PING"))
    except RedisUnavailable:
        return False


@dataclass(frozen=True, slots=True)
class Memory:
    """How full it is. max_bytes 0: without a limit."""

    used_bytes: int
    max_bytes: int


async def memory(client: AnyClient) -> Memory:
    """Of the server that it is connected to. Raises RedisUnavailable."""
    told = await call(client, "INFO", "memory")
    return Memory(int(told["used_memory"]), int(told.get("maxmemory", 0)))


async def call(client: AnyClient, *command: Value) -> Any:
    """One command; the raw reply. Raises RedisUnavailable, or redis.exceptions.ResponseError for a refusal.

    Behind a router the command's first argument is its key.
    """
    try:
        if isinstance(client, aioredis.Redis):
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]
        return await client.routed(_key(command[1]), lambda node, asking: send(node, *command, asking=asking))
    except errors.MovedError as error:
        raise RedisUnavailable(f"{command[0]!r}: {_A_NODE_OF_A_CLUSTER}") from error
    except UNAVAILABLE as error:
        raise RedisUnavailable(f"{command[0]!r}: {type(error).__name__}: {error}") from error


async def send(client: Client, *command: Value, asking: bool) -> Any:
    """One command to one server, as redis-py does it. asking: it serves the key before it owns it (an ASK)."""
    if not asking:
        return await client.execute_command(*command)  # type: ignore[no-untyped-call]
    pipeline = client.pipeline(transaction=False)  # ASKING holds for the next command of its connection
    pipeline.execute_command("ASKING")
    pipeline.execute_command(*command)
    _, reply = await pipeline.execute(raise_on_error=False)
    if isinstance(reply, Exception):
        raise reply
    return reply


def _key(value: Value) -> str | bytes:
    assert isinstance(value, str | bytes), value
    return value


_A_NODE_OF_A_CLUSTER = (
    "it is a node of a cluster, so redis_url has to begin with redis+cluster:// (or rediss+cluster://)"
)


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

    async def __call__(self, client: AnyClient, keys: Sequence[str | bytes], arguments: Sequence[Value] = ()) -> Any:
        try:
            if isinstance(client, aioredis.Redis):
                return await self.run_at(client, keys, arguments)
            return await client.routed(keys[0], lambda node, asking: self.run_at(node, keys, arguments, asking=asking))
        except errors.MovedError as error:
            raise RedisUnavailable(f"{self.name}: {_A_NODE_OF_A_CLUSTER}") from error
        except (errors.NoScriptError, *UNAVAILABLE) as error:
            raise RedisUnavailable(f"{self.name}: {type(error).__name__}: {error}") from error

    async def run_at(
        self, client: Client, keys: Sequence[str | bytes], arguments: Sequence[Value], *, asking: bool = False
    ) -> Any:
        """At this server, whoever owns the keys. Raises redis-py's own errors."""
        run = ("EVALSHA", self.digest, len(keys), *keys, *arguments)
        execute = partial(send, client, asking=True) if asking else client.execute_command
        try:
            return await execute(*run)  # type: ignore[no-untyped-call]
        except errors.NoScriptError:
            pass
        # Loaded and not just EVALed: newer servers evict scripts that only EVAL brought.
        await client.execute_command("SCRIPT LOAD", self.source)  # type: ignore[no-untyped-call]
        return await execute(*run)  # type: ignore[no-untyped-call]
