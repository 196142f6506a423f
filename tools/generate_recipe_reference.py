"""Write `docs/recipe.md`, the recipe reference; with `--check`, fail if it is out of date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mergekit_lite.moe.gates import registry as gate_registry  # noqa: E402
from mergekit_lite.ops import registry  # noqa: E402
from mergekit_lite.recipe.marks import show  # noqa: E402
from mergekit_lite.recipe.reference import recipe_reference  # noqa: E402
from mergekit_lite.recipe.values import wanted  # noqa: E402

TARGET = ROOT / "docs" / "recipe.md"


def text() -> str:
    """Return the page with the ops that this package brings; installed others stay out."""
    own = {
        name: spec
        for name, spec in registry().items()
        if spec.function.__module__.startswith("mergekit_lite.")
    }
    return "\n".join([recipe_reference(own).rstrip("\n"), "", *gates(), ""])


def gates() -> Iterator[str]:
    """Yield the section on the ways of making gates."""
    yield "## Gates"
    yield ""
    yield "What `gate` of `moe` may be, with what every expert must then have. Parameters stand"
    yield "beside `method`: `gate: {method: ridge, penalty: 0.1}`."
    yield ""
    yield "| gate | parameter | takes | range | default | meaning |"
    yield "|---|---|---|---|---|---|"
    needs = {"nothing": "", "prompts": " Needs `prompts`.", "texts": " Needs `prompts` or `data`."}
    for name, spec in sorted(gate_registry().items()):
        yield f"| **`{name}`** | | | | | {spec.summary}{needs[spec.needs]} |"
        for key, one in spec.parameters.items():
            bounds = f"`{str(one.range).replace('x', key)}`" if one.range else ""
            cells = (f"`{key}`", wanted(one), bounds, f"`{show(one.default)}`", one.doc)
            yield f"| | {' | '.join(' '.join(cell.split()) for cell in cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when stale")
    if parser.parse_args().check:
        fresh = TARGET.exists() and TARGET.read_text(encoding="utf-8") == text()
        if not fresh:
            print(f"{TARGET.relative_to(ROOT)} is out of date", file=sys.stderr)
        return 0 if fresh else 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
