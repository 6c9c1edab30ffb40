"""A real Prometheus on a loaded server: dashboards show data, alerts fire under the faults that they are for."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.issuing.desk import eventually
from tests.issuing.proof import proven
from tests.observability.faults import FAULTS
from tests.observability.picture import draw
from tests.observability.prometheus import MISSING, REPOSITORY, RULES, alerts, is_installed
from tests.observability.stage import VARIABLES, Stage, staged

pytestmark = pytest.mark.skipif(not is_installed(), reason=MISSING)

DASHBOARDS = sorted((REPOSITORY / "deploy" / "grafana").glob("*.json"))
_OURS = re.compile(r"\b(?:guerdon_|grpc_server_|process_|up\b)\w*")
_LABELS = re.compile(r"\{[^{}]*\}")
# What has no fault of its own while nobody does anything; the others measure this machine.
_CALM = {
    *("GuerdonOverIssued", "GuerdonBooksViolated", "GuerdonGateDrift", "GuerdonAdmissionsUnresolved"),
    *("GuerdonBudgetNearlyBurnt", "GuerdonEngineAway", "GuerdonRedisNearlyFull", "GuerdonConnectionsExhausted"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """When all faults are over, the books are proven: none of them gave anything away."""
    async with staged(tmp_path_factory.mktemp("observed")) as stage:
        yield stage
        await proven(stage.settings)


def targets(dashboard: Path) -> list[tuple[str, str]]:
    """Panel and query, with the variables filled in."""
    panels: list[dict[str, Any]] = json.loads(dashboard.read_text())["panels"]
    found = []
    for panel in panels:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            found.append((panel["title"], query))
    return found


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda file: file.stem)
async def test_every_query_of_every_panel_returns_data(stage: Stage, dashboard: Path) -> None:
    for title, query in targets(dashboard):

        async def has_data(query: str = query) -> bool:
            return any(series["value"][1] != "NaN" for series in await stage.prometheus.query(query))

        try:
            await eventually(has_data, poll_seconds=0.3)
        except TimeoutError:
            raise AssertionError(f"{title}: no data for {query}") from None


async def test_the_overview_can_be_drawn(stage: Stage, tmp_path: Path) -> None:
    overview, picture = REPOSITORY / "deploy" / "grafana" / "overview.json", tmp_path / "overview.png"
    now = time.time()
    drawn = await draw(stage.prometheus, overview, picture, start=now - 30, end=now, variables=VARIABLES)
    assert drawn == len({title for title, _ in targets(overview)})
    assert await asyncio.to_thread(picture.read_bytes) > b"\x89PNG"


async def test_every_metric_that_a_rule_or_a_panel_names_exists(stage: Stage) -> None:
    rules = [(RULES / name).read_text() for name in ("recording.yml", "alerts.yml")]
    queries = [query for dashboard in DASHBOARDS for _, query in targets(dashboard)]
    expressions = "\n".join([*(line for rule in rules for line in rule.splitlines() if "#" not in line), *queries])
    named = set(_OURS.findall(_LABELS.sub("", expressions)))
    assert len(named) > 30

    assert not named - await stage.prometheus.names()


async def test_on_a_quiet_day_nobody_is_woken(stage: Stage) -> None:
    assert not await stage.prometheus.firing() & _CALM


def test_every_alert_has_a_fault() -> None:
    assert sorted(alert for _, fires in FAULTS.values() for alert in fires) == sorted(alerts())


@pytest.mark.parametrize("name", FAULTS)
async def test_alerts_fire_under_the_fault_that_they_are_for(stage: Stage, name: str) -> None:
    fault, expected = FAULTS[name]

    async def quiet() -> bool:
        return not expected & await stage.prometheus.firing()

    async def all_firing() -> bool:
        return expected <= await stage.prometheus.firing()

    await eventually(quiet, poll_seconds=0.3)
    async with fault(stage):
        await eventually(all_firing, poll_seconds=0.3)
