"""Engines, servers and the proxies between them: what a campaign of faults attacks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from guerdon_server import bootstrap
from guerdon_server.platform import postgres
from guerdon_server.platform.engines.folder import make_folder
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
    "grpc_port": 0,
    "metrics_port": 0,
    "log_format": "json",
    "test_mode": "true",
}


class Cluster:
    """`async with Cluster(folder) as cluster`: real engines, migrated, and server processes that serve.

    Everything is ended in reverse order at the end of the block, whatever happened in it, a cancellation too. Logs
    stay in the folder, which is the caller's to remove; the data of PostgreSQL is gone by then.
    """

    def __init__(
        self,
        folder: Path,
        *,
        servers: int = 2,
        standby: bool = True,
        replica: bool = True,
        settings: Mapping[str, str | int | float] | None = None,
        disk_bytes: int = 2 << 30,
    ) -> None:
        """`settings`: names of `Settings` for all servers, over DEFAULTS. `disk_bytes`: as of PostgresPair."""
        self.folder = make_folder(folder)
        self.postgres = PostgresPair(self.folder, standby=standby, disk_bytes=disk_bytes)
        self.valkey = ValkeyGroup(self.folder, replica=replica)
        self.servers: tuple[ServerSlot, ...] = ()
        self._servers_wanted = servers
        self._server_settings = {**DEFAULTS, **(settings or {})}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._begin()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    @property
    def settings(self) -> Settings:
        """With the direct addresses of the present primaries, for `bootstrap.verify`."""
        return Settings(postgres_dsn=self.postgres.dsn, redis_url=self.valkey.url, test_mode=True)

    def calm(self) -> None:
        """All faults of all proxies off."""
        for server in self.servers:
            for proxy in server.proxies:
                proxy.calm()

    async def mend(self) -> None:
        """No fault is left, and every server serves, whatever was done."""
        self.calm()
        await self.valkey.mend()
        await self.postgres.mend()
        for server in self.servers:
            await server.thaw()
            if not server.is_running:
                await server.start()

    def pids(self) -> Mapping[str, int]:
        """Of every process that runs now, by name."""
        running = {**self.postgres.pids(), **self.valkey.pids()}
        return running | {server.name: server.pid for server in self.servers if server.is_running}

    def logs(self) -> Mapping[str, str]:
        """The end of every engine's and server's log, by name, for reports."""
        return {
            **self.postgres.logs(),
            **self.valkey.logs(),
            **{server.name: server.log_tail() for server in self.servers},
        }

    async def _begin(self) -> None:
        await self._stack.enter_async_context(self.postgres)
        await self._stack.enter_async_context(self.valkey)
        versioned, repeatable = bootstrap.migration_sources()
        await postgres.migrate(self.postgres.dsn, versioned=versioned, repeatable=repeatable)
        for number in range(self._servers_wanted):
            server = ServerSlot(
                f"server-{number}",
                self.folder / "logs",
                postgres=self.postgres.address,
                redis=self.valkey.address,
                environment=self._environment,
            )
            await self._stack.enter_async_context(server)
            self.postgres.followers.append(server.to_postgres)
            self.valkey.followers.append(server.to_redis)
            self.servers += (server,)
        async with asyncio.TaskGroup() as starting:
            for server in self.servers:
                starting.create_task(server.start())

    def _environment(self, server: ServerSlot) -> Mapping[str, str]:
        settings = {
            "postgres_dsn": self.postgres.dsn_through(server.to_postgres),
            "redis_url": self.valkey.url_through(server.to_redis),
            **self._server_settings,
        }
        return {f"GUERDON_{name.upper()}": str(value) for name, value in settings.items()}

    async def _end(self) -> None:
        """To the end, however often this task is cancelled meanwhile."""
        ending = asyncio.create_task(self._stack.aclose())
        cancelled: asyncio.CancelledError | None = None
        while not ending.done():
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        ending.result()
