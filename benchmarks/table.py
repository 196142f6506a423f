"""From measured rounds to a table and to JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from floor import Floor
from methods import Goal
from process import Usage


@dataclass
class Rounds:
    """Everything measured for one method.

    Attributes:
        ours: our runs on inputs that were never merged before, whose checksums are not known.
        again: the same once the checksums of the inputs are remembered.
        own: as `ours`, with our own defaults where they differ from the peer's.
    """

    name: str
    goal: Goal | None
    read_bytes: int
    write_bytes: int
    floors: list[Floor] = field(default_factory=list)
    ours: list[Usage] = field(default_factory=list)
    again: list[Usage] = field(default_factory=list)
    own: list[Usage] = field(default_factory=list)
    peer: list[Usage] = field(default_factory=list)
    agreement: dict[str, Any] = field(default_factory=dict)

    @property
    def floor(self) -> float:
        return statistics.median(floor.seconds for floor in self.floors)

    @property
    def floor_with_sync(self) -> float:
        return statistics.median(floor.seconds + floor.sync for floor in self.floors)

    def summary(self) -> dict[str, Any]:
        """Return the figures of the table: medians, bests and ratios of medians."""
        mine = wall(self.ours)
        found: dict[str, Any] = {
            "method": self.name,
            "read_bytes": self.read_bytes,
            "write_bytes": self.write_bytes,
            "floor": self.floor,
            "floor_with_sync": self.floor_with_sync,
            "ours": mine,
            "again": wall(self.again),
            "over_floor": mine["median"] / self.floor,
            "over_floor_with_sync": mine["median"] / self.floor_with_sync,
            "goal": asdict(self.goal) if self.goal else None,
        }
        if self.own:
            found["own_defaults"] = wall(self.own)
        if self.peer:
            other = wall(self.peer)
            found["peer"] = other
            found["faster"] = other["median"] / mine["median"]
            found["memory_share"] = mine["peak"] / other["peak"]
            found["agreement"] = self.agreement
        return found


def wall(uses: Sequence[Usage]) -> dict[str, float]:
    """Return median and best wall time and the highest memory of several runs."""
    return {
        "median": statistics.median(usage.wall for usage in uses),
        "best": min(usage.wall for usage in uses),
        "cpu": statistics.median(usage.cpu for usage in uses),
        "peak": max(usage.peak for usage in uses),
        "tree": max(usage.tree for usage in uses),
        "anonymous": max(usage.anonymous for usage in uses),
    }


def _seconds(figures: Mapping[str, float] | None) -> str:
    return f"{figures['median']:.2f} ({figures['best']:.2f})" if figures else "-"


def _megabytes(figures: Mapping[str, float] | None) -> str:
    if not figures:
        return "-"
    return f"{figures['tree'] / 1e6:.0f} ({figures['anonymous'] / 1e6:.0f})"


def _agreement(found: Mapping[str, Any]) -> str:
    if not found:
        return "-"
    if found.get("reason"):
        return f"NO: {found['reason']}"
    if found["equal"] == 1:
        return "same bytes"
    if found["kind"] == "random":
        return f"norm x{found['norm']:.3f}"
    return f"{found['equal']:.1%} same bits, norm x{found['norm']:.3f}"


HEAD = (
    "method", "ours s", "again s", "own defaults s", "peer s", "floor s", "peer/ours", "ours/floor",
    "ours/floor+fsync", "ours MB", "peer MB", "agreement",
)  # fmt: skip


def row(found: Mapping[str, Any]) -> list[str]:
    """Return one line of the table; a `!` marks a goal that was missed."""
    goal = found["goal"] or {"faster": 0.0, "floor": math.inf}
    faster = f"{found['faster']:.1f}x" if "faster" in found else "-"
    if "faster" in found and found["faster"] < goal["faster"]:
        faster += f" ! {goal['faster']:g}x"
    above = f"{found['over_floor']:.2f}x"
    if found["over_floor"] > goal["floor"]:
        above += f" ! {goal['floor']:g}x"
    return [
        found["method"],
        _seconds(found["ours"]),
        _seconds(found["again"]),
        _seconds(found.get("own_defaults")),
        _seconds(found.get("peer")),
        f"{found['floor']:.2f}",
        faster,
        above,
        f"{found['over_floor_with_sync']:.2f}x",
        _megabytes(found["ours"]),
        _megabytes(found.get("peer")),
        _agreement(found.get("agreement", {})),
    ]


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the table as Markdown, columns padded for reading in a terminal."""
    cells = [list(HEAD), *(row(found) for found in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
