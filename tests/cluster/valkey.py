"""Valkey: a primary and a replica, and what happens to them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

from redis.exceptions import OutOfMemoryError

from guerdon_server.platform import redis
from guerdon_server.platform.engines import ValkeyEngine
from guerdon_server.platform.engines.folder import make_folder
from guerdon_server.platform.engines.valkey import redis_url
from tests.cluster.proxy import HOST, Proxy
from tests.cluster.waiting import NotPossible, bounded, let_go, log_tail, stop_still, until

_SETTINGS = {
    "repl-diskless-sync-delay": "0",
    "repl-timeout": "5",
    "repl-ping-replica-period": "1",
}
_PROBE_KEY = "cluster-probe"


class ValkeyNode(ValkeyEngine):
    """One process with its folder."""

    def __init__(self, data_dir: Path, *, password_of: ValkeyNode | None = None) -> None:
        if password_of is not None:
            shutil.copy(password_of.data_dir / "secrets.json", make_folder(data_dir) / "secrets.json")
        super().__init__(data_dir, settings=_SETTINGS)
        self._settings["masterauth"] = self._secrets.redis_password
        self.dump = self._folder / "dump.rdb"

    def __str__(self) -> str:
        return self.data_dir.name

    @property
    def is_running(self) -> bool:
        return self._child is not None and self.exit_status is None

    def url_at(self, port: int) -> str:
        """Its password, another port."""
        return redis_url(self._secrets.redis_password, port)

    async def begin(self) -> None:
        """Start it, in bounded time."""
        await bounded(self.start(), f"{self} to start", log_path=self.log_path)

    async def call(self, *command: redis.Value) -> Any:
        """One command on a connection of its own."""
        async with redis.connect(self.url) as client:
            return await redis.call(client, *command)

    async def info(self, section: str) -> Mapping[str, Any]:
        async with redis.connect(self.url) as client:
            fields: Mapping[str, Any] = await client.info(section)
            return fields

    async def follow(self, primary: ValkeyNode) -> None:
        """Become its replica; returns when it has all that the primary has."""
        await self.call("REPLICAOF", HOST, primary.port)

        async def in_step() -> bool:
            return (await self.info("replication")).get("master_link_status") == "up"

        await until(in_step, f"{self} to follow {primary}", log_path=self.log_path)

    async def detach(self) -> None:
        """Become a primary with what it has."""
        await self.call("REPLICAOF", "NO", "ONE")
        assert (await self.info("replication"))["role"] == "master"


class ValkeyGroup:
    """The primary and, if asked for, one replica that follows it. `async with` it.

    `followers`: the proxies that lead to the primary; a fail-over leads them to the new one.
    """

    def __init__(self, folder: Path, *, replica: bool = True) -> None:
        self._primary = ValkeyNode(folder / "valkey-a")
        self._replica: ValkeyNode | None = None
        if replica:
            self._replica = ValkeyNode(folder / "valkey-b", password_of=self._primary)
        self._dump = folder / "valkey-dump.rdb"
        self._stack = AsyncExitStack()
        self.followers: list[Proxy] = []

    # --- addresses ------------------------------------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """Of the primary."""
        return HOST, self._primary.port

    @property
    def url(self) -> str:
        """Of the primary, directly, with the password."""
        return self._primary.url

    @property
    def replica_url(self) -> str:
        """Of the replica, directly, with the password."""
        return self._other.url

    def url_through(self, proxy: Proxy) -> str:
        """The same with the proxy's address."""
        return self._primary.url_at(proxy.port)

    def client(self) -> redis.Client:
        """A client straight to the primary; close it."""
        return redis.connect(self.url)

    async def run_id(self) -> str:
        """Of the primary's process."""
        return str((await self._primary.info("server"))["run_id"])

    def pids(self) -> dict[str, int]:
        """Of each that runs, by name."""
        return {node.data_dir.name: node.pid for node in self._nodes if node.is_running}

    def logs(self) -> dict[str, str]:
        """The end of each log, by name."""
        return {node.data_dir.name: log_tail(node.log_path) for node in self._nodes}

    @property
    def _nodes(self) -> list[ValkeyNode]:
        return [self._primary, *([self._replica] if self._replica is not None else [])]

    # --- life -----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        for node in self._nodes:
            self._stack.push_async_callback(node.stop)
            await node.begin()
        if self._replica is not None:
            await self._replica.follow(self._primary)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def kill(self) -> None:
        """SIGKILL to the primary. Does nothing when it is down."""
        await self._primary.kill()

    async def restart_empty(self) -> None:
        """The primary's process anew, with nothing in it (and so in its replica)."""
        await self._restart(None)

    async def save_dump(self) -> None:
        """Keep an RDB dump of this moment."""
        await self._primary.call("SAVE")
        shutil.copyfile(self._primary.dump, self._dump)

    async def restart_with_dump(self) -> None:
        """The primary's process anew, with what the last `save_dump` kept. Raises NotPossible if there is none."""
        if not self._dump.exists():
            raise NotPossible("no dump of Valkey was saved")
        await self._restart(self._dump)

    async def _restart(self, dump: Path | None) -> None:
        primary = self._primary
        await primary.kill()
        primary.dump.unlink(missing_ok=True)
        if dump is not None:
            shutil.copyfile(dump, primary.dump)
        await primary.begin()

    async def freeze(self) -> None:
        """SIGSTOP to the primary."""
        await stop_still(lambda: [self._primary.pid], str(self._primary))

    async def thaw(self) -> None:
        """Whichever is frozen goes on."""
        await let_go(lambda: [node.pid for node in self._nodes if node.is_running], "Valkey")

    async def mend(self) -> None:
        """Everything as after the start, whatever was done; what it holds stays."""
        await self.thaw()
        if not self._primary.is_running:
            await self.restart_empty()
        await self.unlimit_memory()
        await self.heal()

    # --- data -----------------------------------------------------------------------------------------------------

    async def flush_all(self) -> None:
        await self._primary.call("FLUSHALL", "SYNC")

    async def script_flush(self) -> None:
        """It forgets the scripts."""
        await self._primary.call("SCRIPT FLUSH", "SYNC")

    async def delete_any_key(self, rng: random.Random) -> str | None:
        """One of its keys goes; which, or None where there is none."""
        async with self.client() as client:
            keys = sorted([key async for key in client.scan_iter(count=1000)])
            if not keys:
                return None
            key: bytes = rng.choice(keys)
            await client.delete(key)
            return key.decode()

    async def limit_memory(self, *, headroom_bytes: int = -(256 << 10)) -> None:
        """maxmemory becomes what is used now plus `headroom_bytes`; negative: writes are refused when this returns."""

        async def limited() -> bool:
            memory = await self._primary.info("memory")
            counted = int(memory["used_memory"]) - int(memory["mem_not_counted_for_evict"])
            await self._primary.call("CONFIG SET", "maxmemory", max(1, counted + headroom_bytes))
            return headroom_bytes >= 0 or not await self._takes_writes()

        await until(limited, f"{self._primary} to refuse writes", log_path=self._primary.log_path)

    async def unlimit_memory(self) -> None:
        await self._primary.call("CONFIG SET", "maxmemory", 0)
        assert await self._takes_writes()

    async def _takes_writes(self) -> bool:
        async with self.client() as client:
            try:
                await client.set(_PROBE_KEY, b"")
            except OutOfMemoryError:
                return False
            await client.delete(_PROBE_KEY)
            return True

    # --- fail-over ------------------------------------------------------------------------------------------------

    async def detach_replica(self) -> None:
        """The replica gets nothing from now on: a fail-over loses what is written to the primary after this."""
        await self._other.detach()

    async def fail_over(self, *, keep_old_for: Collection[Proxy] = ()) -> None:
        """The replica becomes the primary and all followers lead to it, but for `keep_old_for`.

        With `keep_old_for` the old primary goes on for them: a split. Without, it is killed first. A replica that was
        not detached is detached now, so it lacks only what was on its way. `heal` before the next.
        """
        old, new = self._primary, self._other
        if not keep_old_for:
            await old.kill()
        await new.detach()
        self._primary, self._replica = new, old
        self._lead(proxy for proxy in self.followers if proxy not in keep_old_for)

    async def heal(self) -> None:
        """Everybody to the (new) primary; the other one, started if need be, becomes its replica, in step."""
        await self.thaw()
        self._lead(self.followers)
        replica = self._replica
        if replica is not None:
            if not replica.is_running:
                await replica.kill()  # it may have ended by itself
                await replica.begin()
            await replica.follow(self._primary)

    @property
    def _other(self) -> ValkeyNode:
        if self._replica is None:
            raise NotPossible("this cluster has no replica of Valkey")
        return self._replica

    def _lead(self, proxies: Iterable[Proxy]) -> None:
        for proxy in proxies:
            if proxy.target != self.address:
                proxy.retarget(*self.address)
