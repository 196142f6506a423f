"""Hold the size budget: short files, short functions."""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mergekit_lite"
FOLDERS = ("mergekit_lite", "benchmarks", "tests", "tools")
LONGEST_FILE = 400
MEDIAN_FILE = 130
FUNCTION_P90 = 40


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def function_lengths(path: Path) -> Iterator[int]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


def percentile(values: list[int], share: float) -> int:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0


def problems() -> list[str]:
    """Return every breach of the budget, one line each."""
    everything = {path: lines(path) for name in FOLDERS for path in (ROOT / name).rglob("*.py")}
    found = [
        f"{path.relative_to(ROOT)}: {count} lines; split it (limit {LONGEST_FILE})"
        for path, count in sorted(everything.items())
        if count > LONGEST_FILE
    ]
    # A package's empty `__init__.py` would only flatter the median.
    sizes = [everything[path] for path in PACKAGE.rglob("*.py") if everything[path] > 5]
    functions = [length for path in PACKAGE.rglob("*.py") for length in function_lengths(path)]
    median, long = statistics.median(sizes), percentile(functions, 0.9)
    print(
        f"package: {len(sizes)} files, {sum(sizes)} lines; file median {median:g}, p90 "
        f"{percentile(sizes, 0.9)}, longest {max(sizes)}; function median "
        f"{statistics.median(functions):g}, p90 {long}"
    )
    if median > MEDIAN_FILE:
        found.append(f"median file has {median:g} lines (limit {MEDIAN_FILE})")
    if long >= FUNCTION_P90:
        found.append(f"one function in ten has {long} lines or more (limit {FUNCTION_P90})")
    return found


def main() -> int:
    found = problems()
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
