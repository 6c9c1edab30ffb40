"""A real Prometheus with the rules of deploy/prometheus, in a hurry."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.issuing.desk import eventually

REPOSITORY = Path(__file__).parents[2]
RULES = REPOSITORY / "deploy" / "prometheus"
RUNBOOKS = REPOSITORY / "docs" / "runbooks"
MISSING = "there is no `prometheus` and `promtool` on PATH: apt-get install prometheus"
_SCRAPE = "1s"
_RULES_EVERY = "500ms"
# A test can't wait for hours, and the machine of a test is no measure of speed: in its copy of the rules windows are
# shorter, and what counts as slow is slower. Nothing else is changed.
_WINDOWS = {
    **{"1m": "2s", "5m": "5s", "10m": "5s", "15m": "5s", "30m": "10s"},
    **{"1h": "10s", "2h": "15s", "6h": "20s"},
}
_SLOW = {
    'le="0.05"': 'le="0.5"',
    "(guerdon_event_loop_lag_seconds_bucket[5m]))) > 0.1": "(guerdon_event_loop_lag_seconds_bucket[5m]))) > 0.5",
}
_ALERT = re.compile(r"^ *- alert: (\w+)$", re.MULTILINE)


def is_installed() -> bool:
    """Both programs, as Debian's package brings them."""
    return all(shutil.which(program) for program in ("prometheus", "promtool"))


def alerts() -> Sequence[str]:
    """Their names, each once, in the order of the file."""
    return list(dict.fromkeys(_ALERT.findall((RULES / "alerts.yml").read_text())))


async def promtool(*arguments: str | Path) -> tuple[int, str]:
    """Exit status, and all that it said."""
    child = await asyncio.create_subprocess_exec(
        *("promtool", *map(str, arguments)), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    told, _ = await child.communicate()
    assert child.returncode is not None
    return child.returncode, told.decode()


class Prometheus:
    """Its HTTP API."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def query(self, expression: str) -> Sequence[Mapping[str, Any]]:
        """Series with their value of now: `metric` and `value` (time, text). AssertionError if it is no query."""
        found = await self._get("query", query=expression)
        assert found["resultType"] in {"vector", "scalar"}, found
        return list(found["result"])

    async def query_range(
        self, expression: str, *, start: float, end: float, step_seconds: float
    ) -> Sequence[Mapping[str, Any]]:
        """Series with their values: `metric` and `values` (times, texts)."""
        found = await self._get("query_range", query=expression, start=start, end=end, step=step_seconds)
        return list(found["result"])

    async def names(self) -> set[str]:
        """Of all series that it has."""
        return set(await self._get("label/__name__/values"))

    async def firing(self) -> set[str]:
        """Names of alerts."""
        found = await self._get("alerts")
        return {alert["labels"]["alertname"] for alert in found["alerts"] if alert["state"] == "firing"}

    async def is_ready(self) -> bool:
        """Whether it answers and has scraped every target once."""
        try:
            found = await self._get("targets", state="active")
        except OSError:
            return False
        return bool(found["activeTargets"]) and all(target["health"] == "up" for target in found["activeTargets"])

    async def _get(self, path: str, **parameters: object) -> Any:
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"

        def get() -> Any:
            try:
                with urllib.request.urlopen(url) as response:
                    return json.load(response)["data"]
            except urllib.error.HTTPError as error:
                if error.code == 503:  # it is starting
                    raise
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None

        return await asyncio.to_thread(get)


@asynccontextmanager
async def scraping(folder: Path, metrics: str) -> AsyncIterator[Prometheus]:
    """One that scrapes the server whose metrics are at `metrics`, with the repository's configuration."""
    _configure(folder, metrics)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    child = await asyncio.create_subprocess_exec(
        *("prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address={address}", "--log.level=error"),
    )
    try:
        prometheus = Prometheus(address)
        await eventually(prometheus.is_ready, poll_seconds=0.2)
        yield prometheus
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


def hurried(rules: str) -> str:
    """The same rules with short windows, more patience, and without the time that an alert has to hold."""
    rules = re.sub(r"for: \d+m\b", "for: 0s", rules)
    for quick, patient in _SLOW.items():
        rules = rules.replace(quick, patient)
    return re.sub(r"\[(\w+)\]", lambda window: f"[{_WINDOWS.get(window[1], window[1])}]", rules)


def _configure(folder: Path, metrics: str) -> None:
    folder.mkdir()
    for file in (RULES / "recording.yml", RULES / "alerts.yml"):
        (folder / file.name).write_text(hurried(file.read_text()))
    (folder / "prometheus.yml").write_text(_configuration(metrics))


def _configuration(metrics: str) -> str:
    text = (RULES / "prometheus.yml").read_text()
    text = text.replace("127.0.0.1:7451", metrics)
    text = re.sub(r"scrape_interval: \w+", f"scrape_interval: {_SCRAPE}\n  scrape_timeout: {_SCRAPE}", text)
    return re.sub(r"evaluation_interval: \w+", f"evaluation_interval: {_RULES_EVERY}", text)
