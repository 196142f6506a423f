"""Points on two axes as SVG text, some of them joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mergekit_lite.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, scale


@dataclass(frozen=True)
class Point:
    """One point.

    Attributes:
        x, y: where it is.
        title: what is said of it where a pointer rests on it.
        series: number of its colour.
        joined: part of the line through all such points, from left to right.
    """

    x: float
    y: float
    title: str
    series: int = 0
    joined: bool = False


def scatter(points: Sequence[Point], *, label: str, across: str, up: str) -> str:
    """Return points on two axes whose ends are round, and need not be 0.

    Args:
        points: one or more.
        label: what the chart shows, for those who cannot see it.
        across: what is written below the horizontal axis.
        up: what is written above the vertical axis.
    """
    left, right, step_x = scale(min(p.x for p in points), max(p.x for p in points))
    low, high, step_y = scale(min(p.y for p in points), max(p.y for p in points))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * (x - left) / (right - left or 1.0),
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low or 1.0),
        )

    parts = []
    for number in range(round((high - low) / step_y) + 1):
        _, y = place(left, low + number * step_y)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick right" x="{LEFT - 5}" y="{y + 3.5:.1f}">'
            f"{low + number * step_y:.4g}</text>"
        )
    for number in range(round((right - left) / step_x) + 1):
        x, _ = place(left + number * step_x, low)
        parts.append(
            f'<text class="tick middle" x="{x:.1f}" y="{HEIGHT - BOTTOM + 13}">'
            f"{left + number * step_x:.4g}</text>"
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick middle" x="{middle}" y="{HEIGHT - 4}">{escape(across)}</text>')
    parts.append(f'<text class="tick" x="{LEFT + 4}" y="{TOP - 1}">{escape(up)}</text>')
    line = sorted(place(p.x, p.y) for p in points if p.joined)
    if len(line) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
        parts.append(f'<polyline class="line" style="stroke:var(--series-1)" points="{path}"/>')
    for point in points:
        x, y = place(point.x, point.y)
        fill = f'style="fill:var(--series-{point.series})"'
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" {fill}>'
            f"<title>{escape(point.title)}</title></circle>"
        )
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
    return f"{head}{''.join(parts)}</svg>"
