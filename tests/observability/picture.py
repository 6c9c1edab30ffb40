"""Draws a dashboard from what a Prometheus has: the same panels, queries and places as in Grafana, as a PNG."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, DateFormatter
from matplotlib.figure import Figure

from tests.observability.prometheus import Prometheus

Series = Sequence[tuple[str, Sequence[datetime], Sequence[float]]]
"""Legend, times, values."""

_COLUMNS = 24
_WIDTH_INCHES, _ROW_INCHES = 15.0, 0.3
_STEPS = 150
_LEGENDS_MAX = 9
_SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_STYLE: Any = {
    "font.size": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


async def draw(
    prometheus: Prometheus, dashboard: Path, to: Path, *, start: float, end: float, variables: Mapping[str, str]
) -> int:
    """Panels that were drawn with data. start, end: Unix time, seconds."""
    text = await asyncio.to_thread(dashboard.read_text)
    found: dict[str, Any] = json.loads(text)
    panels = []
    for panel in found["panels"]:
        series = [
            one
            for target in panel.get("targets", ())
            for one in await _series(prometheus, target, start=start, end=end, variables=variables)
        ]
        panels.append((panel, series))
    await asyncio.to_thread(_drawn, found["title"], panels, to)
    return sum(1 for _, series in panels if series)


async def _series(
    prometheus: Prometheus, target: Mapping[str, Any], *, start: float, end: float, variables: Mapping[str, str]
) -> Series:
    query = target["expr"]
    for name, value in variables.items():
        query = query.replace(name, value)
    step = max(1.0, (end - start) / _STEPS)
    drawn = []
    for one in await prometheus.query_range(query, start=start, end=end, step_seconds=step):
        legend = target["legendFormat"]
        for label, value in one["metric"].items():
            legend = legend.replace(f"{{{{{label}}}}}", value)
        points = [(datetime.fromtimestamp(at, UTC), float(value)) for at, value in one["values"] if value != "NaN"]
        if points:
            drawn.append((legend, [at for at, _ in points], [value for _, value in points]))
    return drawn


def _drawn(title: str, panels: Sequence[tuple[Mapping[str, Any], Series]], to: Path) -> None:
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel, _ in panels)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_INCHES, _ROW_INCHES * (height + 1)), dpi=110)
        figure.text(0.01, 1 - 0.5 / (height + 1), title, fontsize=12, weight="bold", va="center")
        for panel, series in panels:
            place = panel["gridPos"]
            top = 1 - (place["y"] + 1) / (height + 1)
            if panel["type"] == "row":
                figure.text(0.01, top - 0.6 / (height + 1), panel["title"], fontsize=9, color="dimgray", va="center")
                continue
            left, bottom = place["x"] / _COLUMNS, top - place["h"] / (height + 1)
            room = (left + 0.035, bottom + 0.9 / (height + 1), place["w"] / _COLUMNS - 0.045)
            axes = figure.add_axes((*room, (place["h"] - 2.2) / (height + 1)))
            axes.set_title(panel["title"], fontsize=8, loc="left")
            _BY_KIND[panel["type"]](axes, panel, series)
        figure.savefig(to)


def _timeseries(axes: Axes, panel: Mapping[str, Any], series: Series) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    if stacked and series:
        every = sorted({at for _, times, _ in series for at in times})
        known = [dict(zip(times, values, strict=True)) for _, times, values in series]
        layers = [[values.get(at, 0.0) for at in every] for values in known]
        axes.stackplot(every, layers, labels=[legend for legend, _, _ in series], alpha=0.7)  # type: ignore[arg-type]
    else:
        for legend, times, values in series:
            axes.plot(times, values, label=legend, linewidth=1)  # type: ignore[arg-type]
    highest = max((value for _, _, values in series for value in values), default=0)
    shown = defaults["custom"]["thresholdsStyle"]["mode"] == "dashed"
    for step in defaults["thresholds"]["steps"]:
        if shown and step["value"] is not None and step["value"] <= 2 * highest:
            axes.axhline(step["value"], color=step["color"], linestyle="--", linewidth=0.7)
    axes.set_ylim(bottom=defaults.get("min"))
    if highest == 0:
        axes.set_ylim(0, 1)
    axes.xaxis.set_major_locator(AutoDateLocator(minticks=2, maxticks=6))  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(DateFormatter("%M:%S"))  # type: ignore[no-untyped-call]
    axes.yaxis.set_major_formatter(lambda value, _: _text(value, defaults["unit"]))
    axes.locator_params(axis="y", nbins=5)
    if series:
        axes.legend(*_few(axes), fontsize=5.5, loc="upper left", ncols=2, frameon=False)


def _few(axes: Axes) -> tuple[list[Any], list[str]]:
    """As many legends as there is room for, those first that a reader can't do without: the largest."""
    handles, legends = axes.get_legend_handles_labels()
    return handles[:_LEGENDS_MAX], legends[:_LEGENDS_MAX]


def _stat(axes: Axes, panel: Mapping[str, Any], series: Series) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    axes.set_axis_off()
    value = series[0][2][-1] if series else 0.0
    text = _text(value, defaults["unit"]) if series else "no data"
    axes.text(0.5, 0.45, text, fontsize=17, ha="center", va="center", color=_colour(defaults, value), weight="bold")


def _bargauge(axes: Axes, panel: Mapping[str, Any], series: Series) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    bars = sorted(((values[-1], legend) for legend, _, values in series))
    axes.barh(
        [legend for _, legend in bars], [value for value, _ in bars], color=[_colour(defaults, v) for v, _ in bars]
    )
    axes.set_xlim(0, defaults.get("max"))
    axes.tick_params(axis="y", labelsize=6, pad=-4, labelcolor="black")
    for label in axes.get_yticklabels():
        label.set_horizontalalignment("left")
    axes.xaxis.set_major_formatter(lambda value, _: _text(value, defaults["unit"]))


def _colour(defaults: Mapping[str, Any], value: float) -> str:
    reached = [s["color"] for s in defaults["thresholds"]["steps"] if s["value"] is None or value >= s["value"]]
    return {"orange": "darkorange", "red": "crimson"}.get(reached[-1], "seagreen")


def _text(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 or value == 0 else f"{1000 * value:.3g} ms"
    suffix = {"reqps": "/s", "ops": "/s", "bytes": "B"}.get(unit, "")
    for scale, letter in _SCALES:
        if abs(value) >= scale:
            return f"{value / scale:.3g} {letter}{suffix}"
    return f"{value:.3g}{' ' if suffix == 'B' else ''}{suffix}"


_BY_KIND = {"timeseries": _timeseries, "stat": _stat, "bargauge": _bargauge}
