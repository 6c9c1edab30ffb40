"""Draws docs/overview.png: a loaded server on real engines, two faults, and what Prometheus saw of it.

python -m tests.observability [--seconds 90] [--to docs/overview.png]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from tests.issuing.desk import ask, fresh, outcome
from tests.observability.faults import FAULTS
from tests.observability.picture import draw
from tests.observability.prometheus import MISSING, REPOSITORY, is_installed
from tests.observability.stage import CALLS_IN_FLIGHT_MAX, VARIABLES, Stage, staged

_OVERVIEW = REPOSITORY / "deploy" / "grafana" / "overview.json"
_CALLERS = 48


async def _run(seconds: float, to: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="guerdon-picture-") as folder:
        async with staged(Path(folder)) as stage:
            start = time.time()
            print(f"load for {seconds:.0f} s: little, much", flush=True)
            await asyncio.sleep(0.25 * seconds)
            async with _busy(stage):
                await asyncio.sleep(0.25 * seconds)
            for name, part in (("redis slow", 0.12), ("crowd", 0.08)):
                print(f"fault: {name}", flush=True)
                async with FAULTS[name][0](stage):
                    await asyncio.sleep(part * seconds)
            await asyncio.sleep(0.3 * seconds)
            drawn = await draw(stage.prometheus, _OVERVIEW, to, start=start, end=time.time(), variables=VARIABLES)
    print(f"{to}: {drawn} panels")


@contextlib.asynccontextmanager
async def _busy(stage: Stage) -> AsyncIterator[None]:
    """Many callers at once, fewer than may be in flight."""
    assert _CALLERS < CALLS_IN_FLIGHT_MAX

    async def call() -> None:
        while True:
            await outcome(stage.desk.issue(ask(user_id=fresh("crowd"))))

    callers = [asyncio.create_task(call()) for _ in range(_CALLERS)]
    try:
        yield
    finally:
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.observability", description=__doc__)
    parser.add_argument("--seconds", type=float, default=90.0, help="how long the run is")
    parser.add_argument("--to", type=Path, default=REPOSITORY / "docs" / "overview.png", help="the file to write")
    given = parser.parse_args()
    if not is_installed():
        print(MISSING, file=sys.stderr)
        return 1
    asyncio.run(_run(given.seconds, given.to))
    return 0


if __name__ == "__main__":
    sys.exit(main())
