"""docs/mergekit-differences.md names the tests that show what it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mergekit_lite.recipe.compat.methods import METHODS

ROOT = Path(__file__).resolve().parents[3]
PEER = ROOT / "tests" / "peer"


def test_each_row_is_shown_by_a_test_and_each_test_has_its_row() -> None:
    page = (ROOT / "docs" / "mergekit-differences.md").read_text()
    named = re.findall(r"\| `(test_\w+)` \|", page)
    tree = ast.parse((PEER / "test_differences.py").read_text())
    written = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert sorted(named) == sorted(name for name in written if name.startswith("test_"))


def test_every_method_is_run_by_both_tools() -> None:
    texts = [path.read_text() for path in (PEER / "recipes").glob("*.yml")]
    texts.append((PEER / "test_differences.py").read_text())
    lacking = [
        name
        for name in METHODS
        if not any(re.search(rf"merge_method: {name}\b|one\(\"{name}\"", text) for text in texts)
    ]
    assert lacking == []
