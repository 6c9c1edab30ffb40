"""One `guerdon serve`, and the three ways in and out of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.cluster.proxy import Proxy


class ServerSlot:
    """A server process that can be killed and started again; its addresses stay.

    callers: between clients and the server: give clients `slot.target`. to_postgres, to_redis: between the server and
    its stores. Faults of the three proxies are theirs; they survive a restart of the server.
    """

    name: str
    callers: Proxy
    to_postgres: Proxy
    to_redis: Proxy
    log_path: Path

    @property
    def target(self) -> str:
        """HOST:PORT for clients, the same over restarts."""
        raise NotImplementedError

    @property
    def is_running(self) -> bool:
        """Started and not ended (a frozen one runs)."""
        raise NotImplementedError

    @property
    def exit_status(self) -> int | None:
        """Of the last process: None while it runs or before the first start; negative: the signal that ended it."""
        raise NotImplementedError

    @property
    def starts(self) -> int:
        """How many processes there were."""
        raise NotImplementedError

    async def start(self, *, failpoints: str = "", clock_offset_seconds: float = 0, **environment: str) -> None:
        """Start it and wait until it serves. `environment`: GUERDON_... variables that win over the cluster's.

        `failpoints` becomes GUERDON_FAILPOINTS. Raises NotInForce with the end of its log if it doesn't serve.
        """
        raise NotImplementedError

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone. Does nothing when it has ended."""
        raise NotImplementedError

    async def stop(self) -> int:
        """SIGTERM: it finishes what is in flight. Returns the exit status; raises NotInForce if it doesn't end."""
        raise NotImplementedError

    async def ended(self, *, seconds_max: float = 30.0) -> int:
        """Wait until it ends by itself (a failpoint): the exit status."""
        raise NotImplementedError

    async def freeze(self) -> None:
        """SIGSTOP; returns when it stands still."""
        raise NotImplementedError

    async def thaw(self) -> None:
        """SIGCONT. Does nothing when it isn't frozen."""
        raise NotImplementedError

    def log_tail(self) -> str:
        """The last few kilobytes of what it said."""
        raise NotImplementedError

    async def metrics(self) -> Mapping[str, float]:
        """Every sample, by `name` or `name{label="value",...}` with labels sorted. Raises OSError if it is not there."""
        raise NotImplementedError
