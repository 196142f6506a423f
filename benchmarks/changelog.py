"""The lines of CHANGELOG.md that say which bytes changed."""

from __future__ import annotations

from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "CHANGELOG.md"


def numerics(text: str) -> list[str]:
    """Return every entry under a heading "Numerics", each in one line without its dash."""
    found: list[str] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("#"):
            inside = line.strip("# ").lower() == "numerics"
        elif inside and line.startswith("- "):
            found.append(line[2:].strip())
        elif inside and line.startswith("  ") and found:
            found[-1] += f" {line.strip()}"
    return found


def entry(beginning: str, text: str) -> str:
    """Return the one entry under "Numerics" that begins so.

    Raises:
        ValueError: none does, or several do.
    """
    found = [line for line in numerics(text) if beginning and line.startswith(beginning)]
    if len(found) != 1:
        what = "no line" if not found else f"{len(found)} lines"
        raise ValueError(f'{what} under "Numerics" in {FILE.name} begin with "{beginning}"')
    return found[0]
