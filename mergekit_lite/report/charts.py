"""Small charts as SVG and HTML text: no script, no font, no file beside the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

Value = float | None

# A chart is drawn for the width of a phone and grows on wider screens.
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 30
SERIES = 8
"""Colours that the style sheet knows, `--series-0` and so on; more lines use them again, dashed."""
TICKS = 4


def lines(
    series: Mapping[str, Sequence[Value]],
    *,
    label: str,
    axis: str,
    text: Callable[[float], str],
) -> str:
    """Return a line chart, one line a series over 0, 1, 2, ..., with a legend below.

    Args:
        series: name -> values; None leaves a gap.
        label: what the chart shows, for those who cannot see it.
        axis: what is counted from left to right.
        text: how a value is written.
    """
    known = [v for values in series.values() for v in values if v is not None]
    count = max((len(values) for values in series.values()), default=0)
    if not known:
        return '<p class="none">nothing to draw: all values are undefined</p>'
    low, high, step = scale(min(0.0, *known), max(known))
    parts = [*_grid(low, high, step, text), *_columns(count, axis)]
    for number, (name, values) in enumerate(series.items()):
        dashed = " dashed" if number >= SERIES else ""
        style = f'class="line{dashed}" style="stroke:var(--series-{number % SERIES})"'
        points = [
            None if v is None else (_x(i, count), _y(v, low, high)) for i, v in enumerate(values)
        ]
        for run in _runs(points):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
            parts.append(f'<polyline {style} points="{path}"/>')
        for i, (point, value) in enumerate(zip(points, values, strict=True)):
            if point is not None and value is not None:
                title = escape(f"{name}, {axis} {i}: {text(value)}")
                dot = f'cx="{point[0]:.1f}" cy="{point[1]:.1f}" r="2.2"'
                fill = f'style="fill:var(--series-{number % SERIES})"'
                parts.append(f"<circle {dot} {fill}><title>{title}</title></circle>")
    return _svg(label, HEIGHT, parts) + legend(list(series))


def strips(
    rows: Mapping[str, Sequence[Value]],
    *,
    label: str,
    axis: str,
    text: Callable[[float], str],
) -> str:
    """Return a map of one line of coloured cells a row, its name above it.

    Args:
        rows: name -> values over 0, 1, 2, ...; None leaves a cell empty.
        label, axis, text: as for `lines`.
    """
    count = max((len(values) for values in rows.values()), default=0)
    known = [abs(v) for values in rows.values() for v in values if v is not None]
    if not known:
        return '<p class="none">nothing to draw: all values are undefined</p>'
    limit = max(known) or 1.0
    width = (WIDTH - 2 * RIGHT) / count
    parts, y = [], 4.0
    for name, values in rows.items():
        parts.append(f'<text x="{RIGHT}" y="{y + 9:.1f}">{escape(name)}</text>')
        y += 13
        for i, value in enumerate(values):
            if value is None:
                continue
            title = escape(f"{name}, {axis} {i}: {text(value)}")
            place = f'x="{RIGHT + i * width:.2f}" y="{y:.1f}" width="{width:.2f}" height="14"'
            fill = f'style="fill:{shade(value, limit)}"'
            parts.append(f"<rect {place} {fill}><title>{title}</title></rect>")
        y += 20
    ends = f"{axis} 0 to {count - 1}; full colour is {text(limit)}"
    if any(v is not None and v < 0 for values in rows.values() for v in values):
        ends += f", full opposite colour {text(-limit)}"
    parts.append(f'<text x="{RIGHT}" y="{y + 8:.1f}" class="tick">{escape(ends)}</text>')
    return _svg(label, math.ceil(y + 14), parts)


def matrix(
    names: Sequence[str],
    columns: Sequence[str],
    value: Callable[[int, int], Value],
    text: Callable[[float], str],
) -> str:
    """Return a table of numbers, each cell shaded by its size.

    Args:
        names, columns: heads of the rows and of the columns.
        value: (row, column) -> number; None writes a dash.
        text: how a number is written.
    """
    cells = [[value(i, j) for j in range(len(columns))] for i in range(len(names))]
    known = [abs(v) for row in cells for v in row if v is not None and abs(v) < 1]
    limit = max(known, default=1.0) or 1.0
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    lines = [f"<tr><td></td>{head}</tr>"]
    for name, row in zip(names, cells, strict=True):
        body = "".join(
            "<td>-</td>"
            if v is None
            else f'<td style="background:{shade(v, max(limit, abs(v)))}">{escape(text(v))}</td>'
            for v in row
        )
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{body}</tr>')
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a plain table; what does not fit the screen is scrolled sideways."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table class="plain"><tr>{top}</tr>{body}</table></div>'


def legend(names: Sequence[str]) -> str:
    """Return the names of the lines, each with its colour."""
    items = "".join(
        f'<li><span style="background:var(--series-{i % SERIES})"></span>{escape(name)}'
        f"{' (dashed)' if i >= SERIES else ''}</li>"
        for i, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def shade(value: float, limit: float) -> str:
    """Return a colour over any background: blue for positive, orange for negative values."""
    strength = 0.06 + 0.5 * min(1.0, abs(value) / limit)
    red, green, blue = (37, 99, 235) if value >= 0 else (234, 88, 12)
    return f"rgba({red},{green},{blue},{strength:.3f})"


def scale(low: float, high: float) -> tuple[float, float, float]:
    """Return round ends of an axis that holds [low, high], and the distance of its ticks."""
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0)
    span = high - low or 1.0
    raw = span / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    return math.floor(low / step) * step, math.ceil(high / step - 1e-9) * step or step, step


def _x(index: int, count: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (index / (count - 1) if count > 1 else 0.5)


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)


def _grid(low: float, high: float, step: float, text: Callable[[float], str]) -> list[str]:
    parts = []
    for number in range(round((high - low) / step) + 1):
        value = low + number * step
        y = _y(value, low, high)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        label = escape(text(value))
        parts.append(f'<text class="tick right" x="{LEFT - 5}" y="{y + 3.5:.1f}">{label}</text>')
    return parts


def _columns(count: int, axis: str) -> list[str]:
    every = max(1, math.ceil(count / 8))
    y = HEIGHT - BOTTOM + 13
    parts = [
        f'<text class="tick middle" x="{_x(i, count):.1f}" y="{y}">{i}</text>'
        for i in range(0, count, every)
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [
        *parts, f'<text class="tick middle" x="{middle}" y="{HEIGHT - 4}">{escape(axis)}</text>'
    ]  # fmt: skip


def _runs(points: Sequence[tuple[float, float] | None]) -> list[list[tuple[float, float]]]:
    """Return the points between gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _svg(label: str, height: int, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
    return f"{head}{''.join(parts)}</svg>"
