"""Valkey: a primary and a replica, and what happens to them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from guerdon_server.platform.redis import Client
from tests.cluster.proxy import Proxy


class ValkeyGroup:
    """The primary and, if asked for, one replica that follows it. `followers` are the proxies that lead to it."""

    followers: list[Proxy]

    def __init__(self, folder: Path, *, replica: bool = True) -> None: ...

    @property
    def address(self) -> tuple[str, int]:
        """Of the primary."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """Of the primary, directly, with the password."""
        raise NotImplementedError

    def url_through(self, proxy: Proxy) -> str:
        """The same with the proxy's address."""
        raise NotImplementedError

    def client(self) -> Client:
        """A client straight to the primary; close it."""
        raise NotImplementedError

    async def run_id(self) -> str:
        """Of the primary's process."""
        raise NotImplementedError

    async def start(self) -> None:
        """Both, the replica in step."""
        raise NotImplementedError

    async def stop(self) -> None:
        raise NotImplementedError

    async def kill(self) -> None:
        """SIGKILL to the primary."""
        raise NotImplementedError

    async def restart_empty(self) -> None:
        """The primary's process anew, with nothing in it (and so in its replica)."""
        raise NotImplementedError

    async def save_dump(self) -> None:
        """Keep an RDB dump of this moment."""
        raise NotImplementedError

    async def restart_with_dump(self) -> None:
        """The primary's process anew, with what the last `save_dump` kept. Raises NotPossible if there is none."""
        raise NotImplementedError

    async def flush_all(self) -> None:
        raise NotImplementedError

    async def script_flush(self) -> None:
        raise NotImplementedError

    async def delete_any_key(self, rng: random.Random) -> str | None:
        """One of its keys goes; which, or None where there is none."""
        raise NotImplementedError

    async def limit_memory(self, *, headroom_bytes: int = -1) -> None:
        """maxmemory becomes what is used now plus `headroom_bytes`; negative: writes are refused from now on."""
        raise NotImplementedError

    async def unlimit_memory(self) -> None:
        raise NotImplementedError

    async def freeze(self) -> None:
        """SIGSTOP to the primary."""
        raise NotImplementedError

    async def thaw(self) -> None:
        raise NotImplementedError

    async def detach_replica(self) -> None:
        """The replica gets nothing from now on: a fail-over loses what is written to the primary after this."""
        raise NotImplementedError

    async def fail_over(self, *, keep_old_for: Sequence[Proxy] = ()) -> None:
        """The replica becomes the primary and all followers lead to it, but for `keep_old_for`.

        With `keep_old_for` the old primary goes on for them: a split. Without, it is killed first. A replica that was
        not detached is detached now, so it lacks only what was on its way.
        """
        raise NotImplementedError

    async def heal(self) -> None:
        """After a fail-over: everybody to the new primary, and the old one, started if need be, becomes its replica.

        After `detach_replica` alone: the replica follows again.
        """
        raise NotImplementedError
