"""The campaign as anybody runs it, on a fixed seed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

_MINUTES = 2.8
_SEED = 20261127
# Shorter absences: of Redis 4 s instead of 10, of PostgreSQL 12 s instead of 30; still beyond every deadline there is.
_SCALE = 0.4


async def test_a_campaign_of_three_minutes_breaks_no_promise(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.campaign", "--minutes", str(_MINUTES), "--seed", str(_SEED)),
        *("--scale", str(_SCALE), "--json", str(report)),
        env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "false"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    print(output.decode())

    assert process.returncode == 0, output.decode()[-4000:]
    found = json.loads(report.read_text())
    assert found["held"]
    assert found["calls"] > 0
    assert all(promise["compared"] for promise in found["promises"].values()), found["promises"]
