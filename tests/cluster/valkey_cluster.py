"""A Redis Cluster of local processes: primaries, a replica of each, and what happens to them."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

from redis.crc import key_slot
from redis.exceptions import ResponseError

from guerdon_server.platform import redis
from guerdon_server.platform.engines import ValkeyEngine
from guerdon_server.platform.engines import process as processes
from guerdon_server.platform.engines.folder import make_folder
from tests.cluster.proxy import HOST
from tests.cluster.waiting import bounded, let_go, stop_still, until

SLOTS = 16384
NODE_TIMEOUT_MS = 1000


class ClusterNode(ValkeyEngine):
    """One process with its folder. `node_id`: what the cluster calls it."""

    def __init__(self, data_dir: Path, *, password_of: ClusterNode | None = None) -> None:
        if password_of is not None:
            shutil.copy(password_of.data_dir / "secrets.json", make_folder(data_dir) / "secrets.json")
        self.bus_port = 0
        super().__init__(
            data_dir,
            settings={
                "cluster-enabled": "yes",
                "cluster-config-file": "nodes.conf",
                "cluster-node-timeout": str(NODE_TIMEOUT_MS),
                "cluster-replica-validity-factor": "0",
                "cluster-require-full-coverage": "no",
                "repl-diskless-sync-delay": "0",
                "repl-ping-replica-period": "1",
            },
        )
        self._settings["masterauth"] = self._secrets.redis_password
        self.node_id = ""

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        if self._port_may_change:  # the first start, which is tried again where somebody was faster
            self.bus_port = processes.free_port()
            self._settings["cluster-port"] = str(self.bus_port)
        return super()._spawn(port)

    def __str__(self) -> str:
        return self.data_dir.name

    @property
    def is_running(self) -> bool:
        return self._child is not None and self.exit_status is None

    @property
    def address(self) -> tuple[str, int]:
        return HOST, self.port

    async def begin(self) -> None:
        await bounded(self.start(), f"{self} to start", log_path=self.log_path)
        self.node_id = (await self.call("CLUSTER", "MYID")).decode()

    async def call(self, *command: redis.Value) -> Any:
        """One command on a connection of its own, to this node whoever owns the key."""
        async with redis.connect(self.url, reconnects_max=0) as client:
            return await redis.call(client, *command)

    async def run_id(self) -> str:
        """Of this process."""
        async with redis.connect(self.url) as client:
            return str((await client.info("server"))["run_id"])

    async def role(self) -> str:
        """master or slave."""
        return str((await self.call("ROLE"))[0].decode())


class ValkeyCluster:
    """Three primaries that share the slots, and a replica of each. `async with` it."""

    def __init__(self, folder: Path, *, shards: int = 3, replicas: bool = True) -> None:
        first = ClusterNode(folder / "node-1")
        others = [
            ClusterNode(folder / f"node-{number}", password_of=first)
            for number in range(2, shards * (2 if replicas else 1) + 1)
        ]
        self.nodes: Sequence[ClusterNode] = [first, *others]
        self._shards = shards
        self._stack = AsyncExitStack()

    @property
    def url(self) -> str:
        """Of the cluster, by two of its nodes."""
        password = self.nodes[0]._secrets.redis_password
        seeds = ",".join(f"{HOST}:{node.port}" for node in self.nodes[:2])
        return f"redis+cluster://:{password}@{seeds}"

    # --- life -----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            for node in self.nodes:
                self._stack.push_async_callback(node.stop)
            await asyncio.gather(*(node.begin() for node in self.nodes))
            await self._form()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _form(self) -> None:
        first, primaries = self.nodes[0], self.nodes[: self._shards]
        for number, node in enumerate(self.nodes):
            await node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if node is not first:
                await node.call("CLUSTER", "MEET", HOST, first.port, first.bus_port)
        for number, node in enumerate(primaries):
            bounds = [SLOTS * shard // self._shards for shard in (number, number + 1)]
            await node.call("CLUSTER", "ADDSLOTSRANGE", bounds[0], bounds[1] - 1)
        for node, primary in zip(self.nodes[self._shards :], primaries, strict=False):
            await self._follows(node, primary)
        await self.settled()

    async def _follows(self, node: ClusterNode, primary: ClusterNode) -> None:
        async def taken() -> bool:
            await node.call("CLUSTER", "REPLICATE", primary.node_id)
            return True

        await until(taken, f"{node} to know {primary}", asking_fails=(ResponseError,))

    async def settled(self) -> None:
        """Waits until every node that runs agrees: all slots served, each replica in step."""

        async def agreed() -> bool:
            running = [node for node in self.nodes if node.is_running]
            infos = [_fields(await node.call("CLUSTER", "INFO")) for node in running]
            maps = {str(await node.call("CLUSTER", "SLOTS")) for node in running}
            return (
                all(info["cluster_state"] == "ok" for info in infos)
                and len({info["cluster_current_epoch"] for info in infos}) == 1
                and len(maps) == 1
                and all([await self._in_step(node) for node in running])
            )

        log = self.nodes[0].log_path
        await until(agreed, "the cluster to agree", log_path=log, asking_fails=(redis.RedisUnavailable, ResponseError))

    @staticmethod
    async def _in_step(node: ClusterNode) -> bool:
        role = await node.call("ROLE")
        return bool(role[0] == b"master" or role[3] == b"connected")

    # --- who serves what ------------------------------------------------------------------------------------------

    async def primaries(self) -> list[ClusterNode]:
        """Who owns slots, as they say themselves."""
        running = [node for node in self.nodes if node.is_running]
        return [node for node in running if await node.role() == "master"]

    async def owner(self, slot: int) -> ClusterNode:
        """As a node that runs sees it."""
        (seen, *_) = [node for node in self.nodes if node.is_running]
        for first, last, (_, port, *_), *_ in await seen.call("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody serves slot {slot}")

    async def other_than(self, node: ClusterNode) -> ClusterNode:
        """Another primary."""
        (other, *_) = [primary for primary in await self.primaries() if primary is not node]
        return other

    async def replica_of(self, primary: ClusterNode) -> ClusterNode:
        """One that follows it."""
        for node in self.nodes:
            if node.is_running and node is not primary:
                role = await node.call("ROLE")
                if role[0] == b"slave" and role[2] == primary.port:
                    return node
        raise AssertionError(f"{primary} has no replica")

    async def flush_all(self) -> None:
        for node in await self.primaries():
            await node.call("FLUSHALL", "SYNC")

    # --- faults ---------------------------------------------------------------------------------------------------

    async def kill(self, node: ClusterNode) -> None:
        await node.kill()

    async def freeze(self, node: ClusterNode) -> None:
        await stop_still(lambda: [node.pid], str(node))

    async def thaw(self, node: ClusterNode) -> None:
        await let_go(lambda: [node.pid], str(node))

    async def promoted(self, node: ClusterNode) -> None:
        """Waits until this replica has become a primary."""

        async def is_primary() -> bool:
            return await node.role() == "master"

        await until(is_primary, f"{node} to be promoted", log_path=node.log_path)

    async def mend(self) -> None:
        """Everybody runs and agrees; what was killed comes back, empty, as a replica of who took over."""
        await let_go(lambda: [node.pid for node in self.nodes if node.is_running], "the cluster")
        for node in self.nodes:
            if not node.is_running:
                await node.kill()  # it may have ended by itself
                await node.begin()
        await self.settled()

    # --- moving slots ---------------------------------------------------------------------------------------------

    async def begin_move(self, slot: int, target: ClusterNode) -> ClusterNode:
        """The slot is IMPORTING at the target and MIGRATING at its owner, who is returned."""
        source = await self.owner(slot)
        await target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id)
        await source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.node_id)
        return source

    async def move_keys(self, slot: int, source: ClusterNode, target: ClusterNode, *, at_once: int = 10) -> int:
        """MIGRATE what the slot holds; how many keys went."""
        moved = 0
        while keys := await source.call("CLUSTER", "GETKEYSINSLOT", slot, at_once):
            await self._migrate(keys, source, target)
            moved += len(keys)
        return moved

    async def move_one_key(self, slot: int, source: ClusterNode, target: ClusterNode) -> None:
        """Any one of what the slot holds."""
        await self._migrate(await source.call("CLUSTER", "GETKEYSINSLOT", slot, 1), source, target)

    @staticmethod
    async def _migrate(keys: Sequence[bytes], source: ClusterNode, target: ClusterNode) -> None:
        password = source._secrets.redis_password
        await source.call("MIGRATE", HOST, target.port, "", 0, 5000, "AUTH", password, "KEYS", *keys)

    async def end_move(self, slot: int, target: ClusterNode) -> None:
        """The slot is the target's, and everybody knows."""
        for node in [target, *(n for n in await self.primaries() if n is not target)]:
            await node.call("CLUSTER", "SETSLOT", slot, "NODE", target.node_id)

    async def move(self, slot: int, target: ClusterNode) -> None:
        """All of it, as a resharding does."""
        source = await self.begin_move(slot, target)
        await self.move_keys(slot, source, target, at_once=1)
        await self.end_move(slot, target)

    async def move_in_one_piece(self, slots: Sequence[int], target: ClusterNode) -> None:
        """As Valkey does it from 9.0 on: copied, followed, handed over; returns when all slots are the target's."""
        source = await self.owner(slots[0])
        ranges = [bound for slot in slots for bound in (slot, slot)]
        await source.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", *ranges, "NODE", target.node_id)

        async def handed_over() -> bool:
            return all([await self.owner(slot) is target for slot in slots])

        await until(handed_over, f"slots to move to {target}", log_path=source.log_path)


def slot_of(group: int) -> int:
    """Of a gate group's keys."""
    return key_slot(str(group).encode())


def _fields(text: bytes) -> Mapping[str, str]:
    return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
