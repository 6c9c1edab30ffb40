"""Rounds, one after the other, on clusters that are made anew every act, until the time is over."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tests.campaign.plan import ROUNDS_IN_ACT, Round, rounds
from tests.campaign.report import Report, checkout
from tests.campaign.rounds import Played, play
from tests.cluster.cluster import Cluster

_START_SECONDS_MAX = 120.0
_ERRORS_MAX = 3


@dataclass(frozen=True, slots=True)
class Options:
    """`only`: names of faults; all if empty. `keep`: where logs of broken rounds go; None: nowhere.

    `scale` multiplies the durations of faults: 1 is what the table says. `first`: the round to begin with.
    """

    seed: int
    minutes: float
    only: Sequence[str] = ()
    servers: int = 2
    scale: float = 1.0
    rounds_max: int = 1_000_000
    first: int = 1
    keep: Path | None = None


async def run(options: Options, on_round: Callable[[Played], None]) -> Report:
    """Cancel it to stop; what was played until then is lost, everything that was started is ended."""
    report = Report(options.seed, options.minutes, options.scale, options.servers, checkout())
    started = time.monotonic()
    planned = islice(rounds(options.seed, only=options.only), options.first - 1, None)
    deadline = started + 60 * options.minutes

    def over() -> bool:
        played = len(report.played) >= options.rounds_max
        return time.monotonic() >= deadline or played or len(report.errors) >= _ERRORS_MAX

    while not over():
        folder = Path(tempfile.mkdtemp(prefix="guerdon-campaign-"))
        if os.geteuid() == 0:
            folder.chmod(0o711)  # noqa: ASYNC240
            # PostgreSQL runs as another user then, who has to get through
        try:
            async with Cluster(folder, servers=options.servers) as cluster:
                await cluster.postgres.set_synchronous(False)
                for _ in range(ROUNDS_IN_ACT):
                    if over():
                        break
                    if await _round(cluster, next(planned), options, report, on_round):
                        break  # the campaign itself failed: on with a new cluster
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    report.seconds = time.monotonic() - started
    return report


async def _round(
    cluster: Cluster, planned: Round, options: Options, report: Report, on_round: Callable[[Played], None]
) -> str:
    """The error of the campaign itself, if there was one."""
    async with asyncio.timeout(_START_SECONDS_MAX):
        for slot in cluster.servers:
            if not slot.is_running:
                await slot.start()
    kept = options.keep / f"seed-{options.seed}-round-{planned.number}" if options.keep is not None else None
    history = kept / "history.jsonl" if kept is not None else None
    played = await play(cluster, planned, scale=options.scale, keep=history)
    if played.error:
        report.errors.append(f"round {planned.number}: {played.error}")
    report.played.append(played)
    on_round(played)
    if kept is not None and (played.findings.broken or played.error):
        await asyncio.to_thread(_keep_logs, kept, cluster.logs())
    return played.error


def _keep_logs(folder: Path, logs: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in logs.items():
        (folder / f"{name}.log").write_text(text)
