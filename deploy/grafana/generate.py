"""Writes the dashboards beside this file from dashboards.py, in Grafana's own format.

.venv/bin/python deploy/grafana/generate.py            write them
.venv/bin/python deploy/grafana/generate.py --check    fail if they are not what would be written
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from dashboards import DASHBOARDS
from panels import Dashboard, Panel, Row

_FOLDER = Path(__file__).parent
_SCHEMA_VERSION = 39  # Grafana 11; newer ones migrate it when they load it
_COLUMNS = 24
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def written() -> dict[Path, str]:
    """The text of each dashboard, by file."""
    return {
        _FOLDER / f"{dashboard.name}.json": json.dumps(_dashboard(dashboard), indent=2, ensure_ascii=False) + "\n"
        for dashboard in DASHBOARDS
    }


def _dashboard(dashboard: Dashboard) -> dict[str, Any]:
    return {
        "uid": f"guerdon-{dashboard.name}",
        "title": f"Guerdon: {dashboard.title}",
        "description": dashboard.about,
        "tags": ["guerdon"],
        "schemaVersion": _SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": dashboard.refresh,
        "time": {"from": f"now-{dashboard.since}", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [
            {
                "title": "Guerdon",
                "type": "dashboards",
                "tags": ["guerdon"],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {
            "list": [_datasource(), *(_variable(name, query) for name, query in dashboard.variables.items())]
        },
        "panels": _placed(dashboard.rows),
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0}


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # at each change of the time range
        "sort": 1,
        "hide": 0,
        "includeAll": False,
        "multi": False,
    }


def _placed(rows: tuple[Row, ...]) -> list[dict[str, Any]]:
    """A heading for each row, then its panels side by side."""
    placed: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        heading = {"type": "row", "title": row.title, "collapsed": False, "panels": [], "id": len(placed) + 1}
        placed.append({**heading, "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1}})
        y += 1
        width = _COLUMNS // len(row.panels)
        for place, panel in enumerate(row.panels):
            at = {"x": place * width, "y": y, "w": width, "h": row.height}
            placed.append({"id": len(placed) + 1, "gridPos": at, **_panel(panel)})
        y += row.height
    return placed


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": _thresholds(panel), "color": _colour(panel)}
    if panel.minimum is not None:
        defaults["min"] = panel.minimum
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if panel.kind == "timeseries":
        defaults["custom"] = _lines(panel)
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
        "targets": [_target(panel, place) for place in range(len(panel.queries))],
    }


def _target(panel: Panel, place: int) -> dict[str, Any]:
    query, legend = panel.queries[place]
    over_time = panel.kind == "timeseries"
    return {
        "refId": chr(ord("A") + place),
        "datasource": _SOURCE,
        "editorMode": "code",
        "expr": query,
        "legendFormat": legend,
        "range": over_time,
        "instant": not over_time,
    }


def _thresholds(panel: Panel) -> dict[str, Any]:
    """Green, from the first limit on orange, from the second on red; of a single limit, red. Falling: the reverse."""
    colours = ("green", "orange", "red") if len(panel.limits) > 1 else ("green", "red")
    if panel.falling:
        colours = colours[::-1]
    steps = [{"color": colour, "value": limit} for colour, limit in zip(colours, (None, *panel.limits), strict=False)]
    return {"mode": "absolute", "steps": steps}


def _colour(panel: Panel) -> dict[str, str]:
    return {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"}


def _lines(panel: Panel) -> dict[str, Any]:
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 25 if panel.stacked else 5,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if panel.limits else "off"},
        "scaleDistribution": {"type": "linear"},
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    shown = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if panel.kind == "stat":
        return {"reduceOptions": shown, "colorMode": "value", "graphMode": "none", "textMode": "auto"}
    assert panel.kind == "bargauge", panel.kind
    return {"reduceOptions": shown, "displayMode": "basic", "orientation": "horizontal", "showUnfilled": True}


def main() -> int:
    texts = written()
    if sys.argv[1:] == ["--check"]:
        stale = [file.name for file, text in texts.items() if not file.exists() or file.read_text("utf-8") != text]
        if stale:
            print(f"{', '.join(stale)}: not what dashboards.py says. Run deploy/grafana/generate.py.", file=sys.stderr)
        return 1 if stale else 0
    if sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        return 2
    for file, text in texts.items():
        file.write_text(text, "utf-8")
        print(file.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
