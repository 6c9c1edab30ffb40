"""A TCP proxy that breaks connections in all the ways that networks and failing-over servers do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self


class Proxy:
    """`async with Proxy(host, port) as proxy`: a port of its own that stays, before a target that may change.

    delay_seconds: each piece of data arrives so much later, in both directions.
    mute: answers are swallowed; connections stay open.
    stall: nothing passes in either direction, not even the end of a connection; False lets it all through, late.
    away: connections are cut, and new ones are cut at once, until it is False again.
    lose_replies: so many of the next answers are swallowed, and their connections cut, after the target has acted.
    orphan_requests: so many of the next requests are passed on, and at once the caller's side of their connection is
    cut; the target's side stays open, so that it goes on and acts later without anybody listening.
    """

    delay_seconds: float
    mute: bool
    stall: bool
    away: bool
    lose_replies: int
    orphan_requests: int

    def __init__(self, host: str, port: int, *, counts: Callable[[bytes], bool] | None = None) -> None:
        """`counts`: whether a piece of data is a request or an answer for the two counters; None: every piece is."""

    @property
    def host(self) -> str:
        """Where it listens."""
        raise NotImplementedError

    @property
    def port(self) -> int:
        raise NotImplementedError

    @property
    def address(self) -> str:
        """HOST:PORT of itself."""
        raise NotImplementedError

    @property
    def target(self) -> tuple[str, int]:
        """Where it leads."""
        raise NotImplementedError

    @property
    def connections(self) -> int:
        """Open on the callers' side."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        raise NotImplementedError

    async def __aexit__(self, *_: object) -> None:
        raise NotImplementedError

    def cut(self) -> int:
        """Cut every connection now, on both sides. Returns how many there were."""
        raise NotImplementedError

    def orphan(self) -> int:
        """Cut the callers' side of every connection now; the target's side stays open until the target ends it.

        What the caller has sent is still delivered, and answers go nowhere. Returns how many there were.
        """
        raise NotImplementedError

    def retarget(self, host: str, port: int) -> None:
        """Lead elsewhere from now on; cuts what leads to the old target."""
        raise NotImplementedError

    def calm(self) -> None:
        """All faults off."""
        raise NotImplementedError


def has_http2_message(data: bytes) -> bool:
    """Whether frames of a call (HEADERS or DATA) are in it, and not only pings and window updates. For `counts`."""
    raise NotImplementedError
