"""What is shipped for Prometheus and Grafana: sound by its own tools, complete, and explained."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from guerdon_server import bootstrap
from tests.issuing.desk import eventually
from tests.observability.prometheus import MISSING, REPOSITORY, RULES, RUNBOOKS, alerts, is_installed, promtool

GRAFANA = REPOSITORY / "deploy" / "grafana"
DASHBOARDS = sorted(GRAFANA.glob("*.json"))
_RUNBOOK = re.compile(r"^ *runbook: docs/runbooks/(\w+)\.md$", re.MULTILINE)
_FIRES = re.compile(r"alertname: (\w+)\n +exp_alerts:\n")
_SILENT = re.compile(r"alertname: (\w+), exp_alerts: \[\]")
_SECTIONS = ("## What it means", "## What to look at", "## What to do", "## What not to do")
_KINDS = {"timeseries", "stat", "bargauge"}
needs_promtool = pytest.mark.skipif(not is_installed(), reason=MISSING)


# --- rules ------------------------------------------------------------------------------------------------------------


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "--lint-fatal", "recording.yml", "alerts.yml"),
        ("test", "rules", "tests.yml"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
async def test_promtool_has_no_objection(arguments: tuple[str, ...]) -> None:
    words = [RULES / word if word.endswith(".yml") else word for word in arguments]
    status, told = await promtool(*words)
    assert status == 0, told
    assert "FAILED" not in told


def test_every_alert_is_shown_to_fire_and_to_keep_silent() -> None:
    told = (RULES / "tests.yml").read_text()
    assert set(_FIRES.findall(told)) == set(alerts())
    assert set(_SILENT.findall(told)) == set(alerts())


def test_every_alert_names_its_own_runbook() -> None:
    text = (RULES / "alerts.yml").read_text()
    rules = text.split("- alert: ")[1:]
    assert len(rules) > len(alerts()) - 1
    for rule in rules:
        name = rule.splitlines()[0]
        assert _RUNBOOK.findall(rule) == [name], f"{name} has to say where its runbook is"


@pytest.mark.parametrize("alert", alerts())
def test_every_runbook_says_what_to_do_and_what_not(alert: str) -> None:
    text = (RUNBOOKS / f"{alert}.md").read_text()
    assert text.startswith(f"# {alert}\n")
    assert tuple(line for line in text.splitlines() if line.startswith("## ")) == _SECTIONS


def test_no_runbook_is_of_an_alert_that_is_gone() -> None:
    assert {file.stem for file in RUNBOOKS.glob("*.md")} - {"README"} == set(alerts())


# --- dashboards -------------------------------------------------------------------------------------------------------


def test_dashboards_are_what_their_source_says() -> None:
    command = [sys.executable, str(GRAFANA / "generate.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert checked.returncode == 0, checked.stderr
    assert {file.stem for file in DASHBOARDS} == {"overview", "promotion", "engines", "slo"}


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_can_be_imported_anywhere_and_explains_itself(file: Path) -> None:
    dashboard: Mapping[str, Any] = json.loads(file.read_text())
    assert dashboard["schemaVersion"] >= 39
    assert dashboard["uid"] == f"guerdon-{file.stem}"
    assert dashboard["templating"]["list"][0]["type"] == "datasource"
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels:
        title = panel["title"]
        assert panel["type"] in _KINDS, title
        assert panel["fieldConfig"]["defaults"]["unit"], title
        assert len(panel["description"]) > 30, f"{title} has to say what it means and what to do"
        assert panel["targets"], title
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}", title
    assert not _overlapping([panel["gridPos"] for panel in dashboard["panels"]])
    assert set(re.findall(r"runbook:? (Guerdon\w+)", file.read_text())) <= set(alerts())


def _overlapping(places: list[Mapping[str, int]]) -> list[tuple[int, int]]:
    seen: set[tuple[int, int]] = set()
    twice = []
    for place in places:
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if (x, y) in seen:
                    twice.append((x, y))
                seen.add((x, y))
    return twice


# --- the page ---------------------------------------------------------------------------------------------------------


async def test_every_metric_of_ours_is_explained_and_none_that_is_gone(endpoints: bootstrap.Endpoints) -> None:
    page = (REPOSITORY / "docs" / "OBSERVABILITY.md").read_text()
    explained = set(re.findall(r"^\| `((?:guerdon|grpc_server)_\w+)`", page, re.MULTILINE))

    async def all_there() -> bool:  # some come with the first answer of an engine
        return await asyncio.to_thread(_scraped, endpoints.metrics) >= explained

    await eventually(all_there)
    assert await asyncio.to_thread(_scraped, endpoints.metrics) == explained
    assert all(f"[{alert}](runbooks/{alert}.md)" in page for alert in alerts())


def _scraped(address: str) -> set[str]:
    with urllib.request.urlopen(f"http://{address}/metrics") as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    return {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in families
        if family.name.startswith(("guerdon_", "grpc_server_"))
    }
