"""Engines, servers and the proxies between them: what a campaign of faults attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from guerdon_server.settings import Settings
from tests.cluster.postgres import PostgresPair
from tests.cluster.servers import ServerSlot
from tests.cluster.valkey import ValkeyGroup

DEFAULTS: Mapping[str, str | int | float] = {
    "commit_seconds_max": 2,
    "lease_seconds": 1,
    "admission_age_ms_max": 3000,
    "reconcile_interval_ms": 100,
    "catalogue_poll_ms": 100,
}


class Cluster:
    """`async with Cluster(folder) as cluster`: real engines, migrated, and server processes that serve.

    Everything is ended in reverse order at the end of the block, whatever happened in it, a cancellation too. Logs
    stay in the folder, which is the caller's to remove.
    """

    postgres: PostgresPair
    valkey: ValkeyGroup
    servers: Sequence[ServerSlot]

    def __init__(
        self,
        folder: Path,
        *,
        servers: int = 2,
        standby: bool = True,
        replica: bool = True,
        settings: Mapping[str, str | int | float] | None = None,
    ) -> None:
        """`settings`: names of `Settings` for all servers, over DEFAULTS."""

    async def __aenter__(self) -> Self:
        raise NotImplementedError

    async def __aexit__(self, *_: object) -> None:
        raise NotImplementedError

    @property
    def settings(self) -> Settings:
        """With the direct addresses of the present primaries, for `bootstrap.verify`."""
        raise NotImplementedError

    def logs(self) -> Mapping[str, str]:
        """The end of every engine's and server's log, by name, for reports."""
        raise NotImplementedError
