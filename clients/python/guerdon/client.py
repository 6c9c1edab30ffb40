"""The synchronous and the asyncio client: one method per RPC, the same names and arguments in both.

The methods are written once, in `guerdon._calls`, where their documentation is (`help(Client.issue_prize)` shows it).
"""

import asyncio
import copy
import functools
import inspect
import itertools
import random as random_module
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Concatenate, Final, ParamSpec, Protocol, Self, TypeVar, get_args

import grpc
from google.protobuf.message import Message

from guerdon import _calls as calls
from guerdon import _rpcs as rpcs
from guerdon._flow import Attempt, Flow, RetryPolicy, Terms

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=Callable[..., Any])

PRINCIPAL_METADATA_KEY: Final = "guerdon-principal"
"""The metadata key under which a client says who it is; servers record it on every issuance."""

_MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
_CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # Retries are this client's: a second layer below it would multiply attempts.
    ("grpc.enable_retries", 0),
    # Without a pool of its own every channel to one target shares one connection, and more channels change nothing.
    ("grpc.use_local_subchannel_pool", 1),
    # A dead connection is noticed under calls in flight; idle ones are left alone, servers count pings as strikes.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # The default of 1 s would outlast the first retries after a restart of the server.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
)


class _Transport(Protocol):
    """Sends one attempt; raises grpc.RpcError where it fails."""

    def send(self, attempt: Attempt) -> Message: ...
    def close(self) -> None: ...


class _AsyncTransport(Protocol):
    """Sends one attempt; raises grpc.RpcError where it fails."""

    def send(self, attempt: Attempt) -> Awaitable[Message]: ...
    async def close(self) -> None: ...


class _GrpcTransport:
    def __init__(self, channels: list[grpc.Channel], metadata: tuple[tuple[str, str], ...] | None) -> None:
        self._channels = channels
        self._lanes = itertools.cycle([_lane(channel) for channel in channels])
        self._metadata = metadata

    def send(self, attempt: Attempt) -> Message:
        method = next(self._lanes)[attempt.rpc.path]
        response: Message = method(attempt.request, timeout=attempt.timeout_seconds, metadata=self._metadata)
        return response

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


class _AsyncGrpcTransport:
    def __init__(self, channels: list[grpc.aio.Channel], metadata: tuple[tuple[str, str], ...] | None) -> None:
        self._channels = channels
        self._lanes = itertools.cycle([_lane(channel) for channel in channels])
        self._metadata = metadata

    def send(self, attempt: Attempt) -> Awaitable[Message]:
        method = next(self._lanes)[attempt.rpc.path]
        call: Awaitable[Message] = method(attempt.request, timeout=attempt.timeout_seconds, metadata=self._metadata)
        return call

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


def _lane(channel: grpc.Channel | grpc.aio.Channel) -> Mapping[str, Callable[..., Any]]:
    """All methods of one channel, built once: building one costs more than a call's own work in this library."""
    return {
        rpc.path: channel.unary_unary(
            rpc.path,
            request_serializer=rpc.request_type.SerializeToString,
            response_deserializer=rpc.response_type.FromString,
        )
        for rpc in rpcs.RPCS
    }


def _terms(timeout: float, retry: RetryPolicy | None, clock: Callable[[], float], random: Callable[[], float]) -> Terms:
    if timeout <= 0:
        raise ValueError(f"timeout must be above 0 seconds, got {timeout}")
    return Terms(timeout, retry or RetryPolicy(), clock, random)


def _other_terms(terms: Terms, timeout: float | None, retry: RetryPolicy | None) -> Terms:
    """The budget of retries is the same one."""
    timeout = terms.timeout_seconds if timeout is None else timeout
    return replace(_terms(timeout, retry or terms.retry, terms.clock, terms.random), tokens=terms.tokens)


def _metadata(principal: str | None) -> tuple[tuple[str, str], ...] | None:
    return None if principal is None else ((PRINCIPAL_METADATA_KEY, principal),)


def _checked_channels(channels: int) -> range:
    if not 1 <= channels <= 256:
        raise ValueError(f"channels must be 1 to 256, got {channels}")
    return range(channels)


def _synchronous(
    call: Callable[Concatenate[Terms, P], Flow[R]],
) -> Callable[Concatenate["Client", P], R]:
    @functools.wraps(call)
    def method(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> R:
        return client._run(call(client._terms, *args, **kwargs))

    return _described(method, call)


def _asynchronous(
    call: Callable[Concatenate[Terms, P], Flow[R]],
) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, R]]:
    @functools.wraps(call)
    async def method(client: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await client._run(call(client._terms, *args, **kwargs))

    return _described(method, call)


def _described(method: M, call: Callable[..., Any]) -> M:
    """Lets help() and inspect show what callers see: self instead of the terms, the result instead of the steps."""
    described = inspect.signature(call)
    _terms_parameter, *arguments = described.parameters.values()
    self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    _, _, result = get_args(described.return_annotation)
    method.__signature__ = described.replace(  # type: ignore[attr-defined]
        parameters=[self_parameter, *arguments], return_annotation=result
    )
    return method


class Client:
    """Calls a Guerdon server and waits. Safe to share between threads; not across a fork.

    target: "host:port", or any gRPC target. channels: connections over which calls are spread in turn.
    timeout: seconds for one call in all, its retries included. principal: who the caller says it is.
    credentials: TLS; without them the connection is plain text. clock and random are for tests.
    """

    def __init__(
        self,
        target: str,
        *,
        channels: int = 1,
        timeout: float = 5.0,
        retry: RetryPolicy | None = None,
        principal: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._terms = _terms(timeout, retry, clock, random)
        opened = [_open(target, credentials) for _ in _checked_channels(channels)]
        self._transport: _Transport = _GrpcTransport(opened, _metadata(principal))

    def with_options(self, *, timeout: float | None = None, retry: RetryPolicy | None = None) -> Self:
        """The same client over the same connections with another deadline (seconds) or retry policy; cheap."""
        other = copy.copy(self)
        other._terms = _other_terms(self._terms, timeout, retry)
        return other

    def close(self) -> None:
        """Closes the connections; calls in flight fail."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, flow: Flow[R]) -> R:
        try:
            step = next(flow)
            while True:
                if not isinstance(step, Attempt):
                    time.sleep(step)
                    step = flow.send(None)
                    continue
                try:
                    response = self._transport.send(step)
                except grpc.RpcError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(response)
        except StopIteration as end:
            result: R = end.value
            return result

    create_promotion = _synchronous(calls.create_promotion)
    get_promotion = _synchronous(calls.get_promotion)
    update_promotion = _synchronous(calls.update_promotion)
    list_promotions = _synchronous(calls.list_promotions)
    transition_promotion = _synchronous(calls.transition_promotion)
    adjust_promotion_budget = _synchronous(calls.adjust_promotion_budget)
    create_entrance = _synchronous(calls.create_entrance)
    get_entrance = _synchronous(calls.get_entrance)
    update_entrance = _synchronous(calls.update_entrance)
    list_entrances = _synchronous(calls.list_entrances)
    list_entrance_promotions = _synchronous(calls.list_entrance_promotions)
    create_prize = _synchronous(calls.create_prize)
    get_prize = _synchronous(calls.get_prize)
    update_prize = _synchronous(calls.update_prize)
    list_prizes = _synchronous(calls.list_prizes)
    adjust_prize_stock = _synchronous(calls.adjust_prize_stock)
    get_prize_stock = _synchronous(calls.get_prize_stock)
    issue_prize = _synchronous(calls.issue_prize)
    batch_issue_prizes = _synchronous(calls.batch_issue_prizes)
    get_issuance = _synchronous(calls.get_issuance)
    list_issuances = _synchronous(calls.list_issuances)
    get_balance = _synchronous(calls.get_balance)
    list_balances = _synchronous(calls.list_balances)
    list_entries = _synchronous(calls.list_entries)
    get_trial_balance = _synchronous(calls.get_trial_balance)
    check_health = _synchronous(calls.check_health)


class AsyncClient:
    """Calls a Guerdon server from asyncio. Create it inside the event loop that uses it.

    target: "host:port", or any gRPC target. channels: connections over which calls are spread in turn.
    timeout: seconds for one call in all, its retries included. principal: who the caller says it is.
    credentials: TLS; without them the connection is plain text. clock and random are for tests.

    Cancelling a call does not undo it: as after a deadline, a grant may have been made.
    """

    def __init__(
        self,
        target: str,
        *,
        channels: int = 1,
        timeout: float = 5.0,
        retry: RetryPolicy | None = None,
        principal: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._terms = _terms(timeout, retry, clock, random)
        opened = [_open_async(target, credentials) for _ in _checked_channels(channels)]
        self._transport: _AsyncTransport = _AsyncGrpcTransport(opened, _metadata(principal))

    def with_options(self, *, timeout: float | None = None, retry: RetryPolicy | None = None) -> Self:
        """The same client over the same connections with another deadline (seconds) or retry policy; cheap."""
        other = copy.copy(self)
        other._terms = _other_terms(self._terms, timeout, retry)
        return other

    async def close(self) -> None:
        """Closes the connections; calls in flight fail."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, flow: Flow[R]) -> R:
        try:
            step = next(flow)
            while True:
                if not isinstance(step, Attempt):
                    await asyncio.sleep(step)
                    step = flow.send(None)
                    continue
                try:
                    response = await self._transport.send(step)
                except grpc.RpcError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(response)
        except StopIteration as end:
            result: R = end.value
            return result

    create_promotion = _asynchronous(calls.create_promotion)
    get_promotion = _asynchronous(calls.get_promotion)
    update_promotion = _asynchronous(calls.update_promotion)
    list_promotions = _asynchronous(calls.list_promotions)
    transition_promotion = _asynchronous(calls.transition_promotion)
    adjust_promotion_budget = _asynchronous(calls.adjust_promotion_budget)
    create_entrance = _asynchronous(calls.create_entrance)
    get_entrance = _asynchronous(calls.get_entrance)
    update_entrance = _asynchronous(calls.update_entrance)
    list_entrances = _asynchronous(calls.list_entrances)
    list_entrance_promotions = _asynchronous(calls.list_entrance_promotions)
    create_prize = _asynchronous(calls.create_prize)
    get_prize = _asynchronous(calls.get_prize)
    update_prize = _asynchronous(calls.update_prize)
    list_prizes = _asynchronous(calls.list_prizes)
    adjust_prize_stock = _asynchronous(calls.adjust_prize_stock)
    get_prize_stock = _asynchronous(calls.get_prize_stock)
    issue_prize = _asynchronous(calls.issue_prize)
    batch_issue_prizes = _asynchronous(calls.batch_issue_prizes)
    get_issuance = _asynchronous(calls.get_issuance)
    list_issuances = _asynchronous(calls.list_issuances)
    get_balance = _asynchronous(calls.get_balance)
    list_balances = _asynchronous(calls.list_balances)
    list_entries = _asynchronous(calls.list_entries)
    get_trial_balance = _asynchronous(calls.get_trial_balance)
    check_health = _asynchronous(calls.check_health)


def _open(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
    return grpc.secure_channel(target, credentials, options=_CHANNEL_OPTIONS)


def _open_async(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(target, credentials, options=_CHANNEL_OPTIONS)
