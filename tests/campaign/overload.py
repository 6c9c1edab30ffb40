"""More than the servers can do, from a generator that costs little: what is refused, and what the accepted wait.

Codes are checked; goodput and waiting are noted only, because they say as much of the machine's other work.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guerdon.v1 import prize_pb2 as prize
from guerdon_server.bench import generator as generators
from tests.campaign.stage import ENTRANCE
from tests.issuing.desk import fresh

if TYPE_CHECKING:
    from tests.campaign.faults import Ground

_METHOD = "/guerdon.v1.PrizeService/IssuePrize"
_SECONDS = 2.5
_TIMES = 3
_OK, _RESOURCE_EXHAUSTED = "0", "8"


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
        message = Path(folder) / "message"
        message.write_bytes(
            prize.IssuePrizeRequest(
                promotion_id=promotion_id,
                entrance_id=ENTRANCE,
                prize_id=f"{promotion_id}-coupon",
                user_id="user-#####",
                request_id="@" * 16,
            ).SerializeToString()
        )
        common = [*generator.command, "-t", f"{host}:{port}", "-p", _METHOD, "-f", str(message), "-d", str(_SECONDS)]
        # What a closed loop gets depends on how many calls are in flight; the most of them is what it can do.
        closed = [await _shoot([*common, "-c", "8", "-s", str(streams)]) for streams in (16, 32, 128)]
        capacity = max(one["grpc_status"].get(_OK, 0) / one["seconds"] for one in closed)
        offered = _TIMES * capacity
        flood = await _shoot([*common, "-c", "8", "-s", "4000", "-r", str(round(offered))])
    goodput = flood["grpc_status"].get(_OK, 0) / max(flood["seconds"], _SECONDS)
    share, p99_ms = goodput / max(capacity, 1), flood["ok_latency_ms"]["p99"]
    statuses = flood["grpc_status"]
    g.notes.append(
        f"capacity {capacity:.0f}/s, offered {offered:.0f}/s: {goodput:.0f}/s granted ({share:.2f}),"
        f" {statuses.get(_RESOURCE_EXHAUSTED, 0)} refused, p99 of the granted {p99_ms:.0f} ms"
    )
    g.compared()
    if set(statuses) - {_OK, _RESOURCE_EXHAUSTED} or flood["broken"] or flood["unanswered"]:
        g.broken(f"overload was answered with {statuses}, {flood['broken']} broken, {flood['unanswered']} unanswered")


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
