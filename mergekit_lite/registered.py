"""What installed packages have registered with this one."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import Any


@cache
def _all() -> Any:  # of one class in Python 3.11, of another after it
    # Every call looks through all installed packages.
    return metadata.entry_points()


def entry_points(*, group: str) -> metadata.EntryPoints:
    """Return the entry points of a group, as they were when they were first asked for."""
    found: metadata.EntryPoints = _all().select(group=group)
    return found
