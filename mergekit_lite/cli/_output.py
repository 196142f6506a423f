"""How data is printed on stdout: sizes, times, tables and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click


def bytes_text(count: float) -> str:
    """Return a number of bytes in decimal units, as file managers and Hubs count them."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def seconds_text(seconds: float) -> str:
    """Return a duration with the two units that matter."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def table(header: Sequence[str], rows: Iterable[Sequence[object]], right: str = "") -> str:
    """Return rows in columns of equal width.

    Args:
        header: title of each column.
        rows: cells, shown by `str`.
        right: one letter a column; `r` sets that column to the right.
    """
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    sides = right.ljust(len(header))
    lines = []
    for row in cells:
        placed = [
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ]
        lines.append("  ".join(placed).rstrip())
    return "\n".join(lines)


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def note(text: str) -> None:
    """Print a line that is not data: on stderr."""
    click.echo(text, err=True)
