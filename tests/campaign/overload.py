"""More than the servers can do, from a generator that costs little: what is refused, and what the accepted wait.

Twice: single calls, of which gRPC refuses what is too much before Python sees it (REFUSED_STREAM, or CANCELLED for what
waited too long there), and batches, which the server refuses itself (RESOURCE_EXHAUSTED).
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from guerdon.v1 import prize_pb2 as prize
from guerdon_server.bench import generator as generators
from guerdon_server.settings import Settings
from tests.campaign.stage import ENTRANCE
from tests.issuing.desk import fresh

if TYPE_CHECKING:
    from tests.campaign.faults import Ground

_CONNECTIONS = 8
_CLOSED_SECONDS = 1.0
_FLOOD_SECONDS = 4.0
_TIMES = 3
_ITEMS = 100
_GOODPUT_SHARE_MIN = 0.5
"""Of what the same machine did just before and just after. Alone on a machine it is 0.9 and more: what is allowed here
is the machine's other work. What this is to find, serving only calls that nobody waits for any more, is below 0.1."""
_ATTEMPTS = 2
_QUEUES_MS_MAX = 2 * 250  # queue_ms_max, to the gate and to the commit
_BACKLOG_MS_MAX = 1000  # backlog_seconds_max
_OK, _CANCELLED, _RESOURCE_EXHAUSTED = "0", "1", "8"


@dataclass(frozen=True, slots=True)
class _Load:
    """`streams`: of each connection, in the closed loop: what a server can do depends on it, and the most counts.

    `held_max`: accepted calls that wait inside a server, beside those that its queues may make wait for a time: those
    that gRPC lets in, or the batches of two commits and two calls of the gate in flight.
    """

    name: str
    method: str
    message: Message
    streams: Sequence[int]
    held_max: int

    def wait_ms_max(self, goodput: float) -> float:
        """What the accepted may wait for at most, whatever the length of the flood, with a factor of two for noise."""
        return 2 * (self.held_max / max(goodput, 1) * 1000 + _QUEUES_MS_MAX) + _BACKLOG_MS_MAX


async def strike(g: Ground) -> None:
    """Measures what a server can do (closed loop), then offers three times that (open loop)."""
    generator = generators.choose("auto", Path(tempfile.gettempdir()))
    if generator.name != "grpcblast":
        g.notes.append(f"NOT DONE: no generator that is cheap enough ({generator.why})")
        return
    slot = g.a_server()
    host, port = slot.callers.target  # not through the proxy, which would be the limit
    promotion_id = fresh("overload")
    desk = g.callers[list(g.cluster.servers).index(slot)].desk
    await desk.opens(promotion_id, entrances=(ENTRANCE,), budgets={})
    await desk.coupon(f"{promotion_id}-coupon", promotion_id=promotion_id)
    with tempfile.TemporaryDirectory() as folder:
        for load in _loads(promotion_id):
            message = Path(folder) / load.name
            message.write_bytes(load.message.SerializeToString())
            path = f"/guerdon.v1.PrizeService/{load.method}"
            command = [*generator.command, "-t", f"{host}:{port}", "-p", path, "-f", str(message)]
            await _attacked(g, load, [*command, "-c", str(_CONNECTIONS)])


def _loads(promotion_id: str) -> Sequence[_Load]:
    calls_max = Settings(postgres_dsn="", redis_url="").calls_per_connection
    marked: dict[str, Any] = {"prize_id": f"{promotion_id}-coupon", "user_id": "user-#####", "request_id": "@" * 16}
    where: dict[str, Any] = {"promotion_id": promotion_id, "entrance_id": ENTRANCE}
    items = [prize.BatchItem(**marked)] * _ITEMS
    batch = prize.BatchIssuePrizesRequest(**where, mode=prize.BATCH_MODE_PER_ITEM, items=items)
    return (
        _Load("single", "IssuePrize", prize.IssuePrizeRequest(**where, **marked), (16, 64), _CONNECTIONS * calls_max),
        _Load("batches", "BatchIssuePrizes", batch, (2, 8), 4 * 1000 // _ITEMS),
    )


async def _attacked(g: Ground, load: _Load, command: Sequence[str]) -> None:
    """A share that is too small is measured once more: something else may have had the machine."""
    for attempt in range(_ATTEMPTS):
        before = await _capacity(command, load.streams)
        flood = await _shoot([*command, "-d", str(_FLOOD_SECONDS), "-s", "4000", "-r", str(round(_TIMES * before))])
        after = await _capacity(command, load.streams)
        granted, refused = flood["grpc_status"].get(_OK, 0), _refused(flood)
        goodput, p99_ms = granted / max(flood["seconds"], _FLOOD_SECONDS), flood["ok_latency_ms"]["p99"]
        share = goodput / max(min(before, after), 1)
        g.notes.append(
            f"{load.name}: {before:.0f} and {after:.0f}/s before and after, {_TIMES * before:.0f}/s offered:"
            f" {goodput:.0f}/s granted ({share:.2f}), refused {refused}, p99 of the granted {p99_ms:.0f} ms"
        )
        if share >= _GOODPUT_SHARE_MIN:
            break
        if attempt == _ATTEMPTS - 1:
            g.broken(f"goodput under overload is {share:.2f} of what the server can do: {g.notes[-_ATTEMPTS:]}")
    g.compared()
    unknown = set(flood["grpc_status"]) - {_OK, _CANCELLED, _RESOURCE_EXHAUSTED}
    if unknown or flood["broken"] or flood["unanswered"]:
        g.broken(f"overload was answered with {flood}")
    if p99_ms > load.wait_ms_max(goodput):
        g.broken(f"the accepted wait for more than {load.wait_ms_max(goodput):.0f} ms: {g.notes[-1]}")
    if granted < 0.9 * flood["requests"] and not refused:
        g.broken(f"nothing was refused: {g.notes[-1]}")


def _refused(flood: dict[str, Any]) -> dict[str, int]:
    statuses = flood["grpc_status"]
    counts = {
        "REFUSED_STREAM": flood["refused_streams"],
        "RESOURCE_EXHAUSTED": statuses.get(_RESOURCE_EXHAUSTED, 0),
        "CANCELLED": statuses.get(_CANCELLED, 0),
    }
    return {name: count for name, count in counts.items() if count}


async def _capacity(command: Sequence[str], streams: Sequence[int]) -> float:
    """Calls granted a second."""
    closed = [await _shoot([*command, "-d", str(_CLOSED_SECONDS), "-s", str(each)]) for each in streams]
    return max(float(one["grpc_status"].get(_OK, 0)) / float(one["seconds"]) for one in closed)


async def _shoot(command: Sequence[str]) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        output, complaint = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if not output:
        raise RuntimeError(f"the generator ended with {process.returncode}: {complaint.decode()[-500:]}")
    found: dict[str, Any] = json.loads(output)
    return found
