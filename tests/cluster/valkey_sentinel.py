"""Three sentinels of local processes, and the primary and replica that they look after."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

from guerdon_server.platform import redis
from guerdon_server.platform.engines import ValkeyEngine
from guerdon_server.platform.engines import process as processes
from guerdon_server.platform.engines.folder import make_folder, write_private
from tests.cluster.proxy import HOST
from tests.cluster.valkey import ValkeyNode
from tests.cluster.waiting import bounded, let_go, stop_still, until

SERVICE = "gate"
_DOWN_AFTER_MS = 500
_FAIL_OVER_TIMEOUT_MS = 3000
# After a pause a sentinel does nothing for so long (TILT, 30 s): a busy machine's pauses are no reason.
_TILT_MS = 1000


class SentinelNode(ValkeyEngine):
    """The same program with `--sentinel`. Its password is the primary's."""

    def __init__(self, data_dir: Path, primary: ValkeyNode) -> None:
        shutil.copy(primary.data_dir / "secrets.json", make_folder(data_dir) / "secrets.json")
        super().__init__(data_dir)
        self._primary = primary

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        password = self._secrets.redis_password
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f"requirepass {password}",
            f"sentinel sentinel-pass {password}",
            f"sentinel monitor {SERVICE} {HOST} {self._primary.port} 2",
            f"sentinel auth-pass {SERVICE} {password}",
            f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} {_FAIL_OVER_TIMEOUT_MS}",
        ]
        write_private(self._config, "".join(f"{line}\n" for line in lines))  # which it goes on to write itself
        return processes.spawn(
            [self._program.path, self._config, "--sentinel"],
            log_path=self.log_path,
            death_signal=self._death_signal,
            cwd=self._folder,
        )

    async def call(self, *command: redis.Value) -> Any:
        """One command on a connection of its own."""
        async with redis.connect(self.url) as client:
            return await redis.call(client, *command)


class SentinelGroup:
    """`async with` it. `nodes`: the first begins as the primary, the other follows it."""

    def __init__(self, folder: Path) -> None:
        first = ValkeyNode(folder / "valkey-a")
        self.nodes = (first, ValkeyNode(folder / "valkey-b", password_of=first))
        self.sentinels = [SentinelNode(folder / f"sentinel-{number}", first) for number in range(3)]
        self._stack = AsyncExitStack()

    @property
    def url(self) -> str:
        """By all sentinels."""
        return self.url_by(*self.sentinels)

    def url_by(self, *asked: SentinelNode) -> str:
        """By some."""
        password = self.nodes[0]._secrets.redis_password
        sentinels = ",".join(f"{HOST}:{sentinel.port}" for sentinel in asked)
        return f"redis+sentinel://:{password}@{sentinels}/{SERVICE}?sentinel_password={password}"

    async def __aenter__(self) -> Self:
        try:
            for node in self.nodes:
                self._stack.push_async_callback(node.stop)
                await node.begin()
            await self.nodes[1].follow(self.nodes[0])
            for sentinel in self.sentinels:
                self._stack.push_async_callback(sentinel.stop)
            await asyncio.gather(*(bounded(s.start(), f"{s.data_dir.name} to start") for s in self.sentinels))
            for sentinel in self.sentinels:
                await sentinel.call("SENTINEL DEBUG", "tilt-period", _TILT_MS)
            await until(self._all_know_all, "the sentinels to know each other", log_path=self.sentinels[0].log_path)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _all_know_all(self) -> bool:
        states = [await sentinel.call("SENTINEL MASTER", SERVICE) for sentinel in self.sentinels]
        return all(
            int(state["num-other-sentinels"]) == len(self.sentinels) - 1 and int(state["num-slaves"]) == 1
            for state in states
        )

    async def primary(self) -> ValkeyNode:
        """As the first sentinel says."""
        _, port = await self.sentinels[0].call("SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(node for node in self.nodes if node.port == int(port))

    async def failed_over(self, node: ValkeyNode) -> None:
        """Waits until all sentinels name this node, and it is a primary."""

        async def named() -> bool:
            addresses = [await s.call("SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE) for s in self.sentinels]
            is_primary = (await node.info("replication"))["role"] == "master"
            return is_primary and all(int(port) == node.port for _, port in addresses)

        await until(named, f"the sentinels to name {node}", log_path=self.sentinels[0].log_path)

    async def follows(self, node: ValkeyNode, primary: ValkeyNode) -> None:
        """Waits until the sentinels have made it a replica."""

        async def followed() -> bool:
            told = await node.info("replication")
            return bool(told["role"] == "slave" and int(told["master_port"]) == primary.port)

        await until(followed, f"{node} to follow {primary}", log_path=self.sentinels[0].log_path)

    async def tell(self, node: ValkeyNode) -> None:
        """The sentinels are told that this is the primary; the other one hears nothing of it."""
        password = node._secrets.redis_password
        for sentinel in self.sentinels:
            await sentinel.call("SENTINEL REMOVE", SERVICE)
            await sentinel.call("SENTINEL MONITOR", SERVICE, HOST, node.port, 2)
            await sentinel.call("SENTINEL SET", SERVICE, "auth-pass", password)

    async def freeze(self, node: ValkeyEngine) -> None:
        await stop_still(lambda: [node.pid], str(node))

    async def thaw(self, node: ValkeyEngine) -> None:
        await let_go(lambda: [node.pid], str(node))
