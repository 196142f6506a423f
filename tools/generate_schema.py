"""Write the JSON schema of recipes into the package; with `--check`, fail if it is out of date."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mergekit_lite.ops import registry  # noqa: E402
from mergekit_lite.recipe.json_schema import json_schema  # noqa: E402

TARGET = ROOT / "mergekit_lite" / "recipe" / "recipe.schema.json"


def text() -> str:
    """Return the schema with the ops that this package brings; installed others stay out."""
    own = {
        name: spec
        for name, spec in registry().items()
        if spec.function.__module__.startswith("mergekit_lite.")
    }
    return json.dumps(json_schema(own), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when stale")
    if parser.parse_args().check:
        fresh = TARGET.exists() and TARGET.read_text(encoding="utf-8") == text()
        if not fresh:
            print(f"{TARGET.relative_to(ROOT)} is out of date", file=sys.stderr)
        return 0 if fresh else 1
    TARGET.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
