"""Lines over time as SVG, for the page of a run: no script, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 960, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 28
_TICKS = 5
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")


@dataclass(frozen=True, slots=True)
class Line:
    """`points`: (seconds since the begin, value). `dashed`: what was wanted, not what was seen."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Band:
    """A phase, in seconds since the begin."""

    name: str
    begin: float
    end: float


def plot(lines: Sequence[Line], bands: Sequence[Band]) -> Markup:
    """The drawing; empty where there is nothing to draw."""
    points = [point for line in lines for point in line.points]
    if not points:
        return Markup("")
    scale = _Scale(
        x_max=max([x for x, _ in points] + [band.end for band in bands]) or 1.0,
        y_max=_nice(max(y for _, y in points)),
    )
    parts = [*_bands(bands, scale), *_axes(scale), *_curves(lines, scale)]
    drawing = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'
    return Markup(drawing)  # noqa: S704  the text in it is escaped


@dataclass(frozen=True, slots=True)
class _Scale:
    x_max: float
    y_max: float

    def x(self, value: float) -> float:
        return _LEFT + value / self.x_max * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - value / self.y_max * (_HEIGHT - _TOP - _BOTTOM)


def _bands(bands: Sequence[Band], scale: _Scale) -> list[str]:
    parts = []
    for number, band in enumerate(bands):
        x, width = scale.x(band.begin), scale.x(band.end) - scale.x(band.begin)
        height = _HEIGHT - _TOP - _BOTTOM
        shade = "band even" if number % 2 == 0 else "band"
        parts.append(f'<rect class="{shade}" x="{x:.1f}" y="{_TOP}" width="{width:.1f}" height="{height}"/>')
        if len(bands) > 1:
            parts.append(f'<text class="phase" x="{x + 4:.1f}" y="{_TOP + 12}">{escape(band.name)}</text>')
    return parts


def _axes(scale: _Scale) -> list[str]:
    parts = []
    for tick in range(_TICKS):
        share = tick / (_TICKS - 1)
        y, x = scale.y(share * scale.y_max), scale.x(share * scale.x_max)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="y" x="{_LEFT - 8}" y="{y + 4:.1f}">{_number(share * scale.y_max)}</text>')
        anchor = ("start", "middle", "middle", "middle", "end")[tick]
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{_number(share * scale.x_max)} s</text>'
        )
    return parts


def _curves(lines: Sequence[Line], scale: _Scale) -> list[str]:
    parts = []
    for number, line in enumerate(lines):
        path = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in line.points)
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<polyline points="{path}" stroke="{COLOURS[number % len(COLOURS)]}"{dash}/>')
    return parts


def _nice(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten: what axes end with."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if value <= step * power * (1 + 1e-9))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
