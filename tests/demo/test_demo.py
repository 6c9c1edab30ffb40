"""The command from outside: processes, signals, exit status, result file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from guerdon import AsyncClient
from guerdon_server.demo.process import ServerProcess
from guerdon_server.platform.engines import Engines

PURCHASES = 300
SECONDS_MAX = 300


def _start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603  our own program
        [sys.executable, "-m", "guerdon_server", "demo", "--purchases", str(PURCHASES), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _run(*arguments: str | Path) -> tuple[int, str]:
    process = _start(*arguments)
    output, _ = process.communicate(timeout=SECONDS_MAX)
    return process.returncode, output


def _result(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def _failed(result: dict[str, Any]) -> Sequence[str]:
    groups = ("from_file", "promises", "verified", "unchanged")
    return [row["name"] for group in groups for row in result[group] if not row["ok"]]


def test_three_crashes_change_no_total(tmp_path: Path) -> None:
    status, output = _run("--crash", "--json", tmp_path / "result.json")
    result = _result(tmp_path / "result.json")
    assert (status, _failed(result), result["error"]) == (0, [], ""), output
    assert [crash["moment"] for crash in result["crashes"]] != []
    assert len(result["crashes"]) == 3
    # A busy machine's server may refuse calls before the first crash, too: they are delivered again as well.
    assert 0 < sum(crash["lost_count"] for crash in result["crashes"]) <= result["first"]["lost"]
    assert result["first"]["prizes"]["welcome-coupon"]["granted"] == 2000 * PURCHASES // 6919
    assert "checks hold" in output
    assert not Path(result["data"]).exists()


async def test_a_data_folder_is_continued_and_a_wrong_total_is_told(short_tmp: Path) -> None:
    folder, file = short_tmp / "demo data", short_tmp / "demo.json"

    children = _interrupt(_start("--data", folder))
    assert children
    assert not any(child.is_running() for child in children)

    status, output = _run("--data", folder, "--json", file)
    result = _result(file)
    assert (status, _failed(result), result["error"]) == (0, [], ""), output
    assert result["continued"]
    granted = sum(prize["granted"] for prize in result["first"]["prizes"].values())
    assert result["first"]["new_grants"] < granted  # what was granted before the interruption stayed so

    await _add_a_coupon(folder)
    status, output = _run("--data", folder, "--json", file)
    assert status == 1, output
    assert "coupons issued" in _failed(_result(file))
    assert "checks failed" in output


def _interrupt(process: subprocess.Popen[str]) -> Sequence[psutil.Process]:
    """Ctrl-C once it delivers; its children of then."""
    assert process.stdout is not None
    for line in process.stdout:
        if "25 %" in line:
            break
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=SECONDS_MAX)
    assert process.returncode == 130, output
    return children


async def _add_a_coupon(folder: Path) -> None:
    async with Engines(folder) as engines:
        server = ServerProcess(
            postgres_dsn=engines.postgres_dsn,
            redis_url=engines.redis_url,
            folder=folder,
            log_path=folder / "logs" / "added.log",
        )
        async with server, AsyncClient(server.target) as client:
            await client.adjust_prize_stock(
                prize_id=f"cdnow-{PURCHASES}-welcome-coupon", delta_units=1, request_id="one-more"
            )


def test_a_folder_in_use_is_refused_by_name(short_tmp: Path) -> None:
    folder = short_tmp / "in use"
    first = _start("--data", folder)
    assert first.stdout is not None
    for line in first.stdout:
        if "engines started" in line:
            break
    status, output = _run("--data", folder)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=SECONDS_MAX)
    assert status == 1
    assert str(first.pid) in output
    assert first.returncode == 130
