"""Check that every shipped recipe of the zoo and every data-free method still gives what it gave.

    python benchmarks/regression.py                            # bytes of all, a minute or two
    python benchmarks/regression.py --scores                   # and bits per byte of all recipes
    python benchmarks/regression.py --update --numerics "`sce` adds the squares"

Bytes are of merges of the zoo with its widths cut down (`thin_zoo.py`). Methods of matrices, whose
last digits libraries decide, are held to sums of their changes. Scores are of the real zoo. All
are in `regression.json`. Where bytes changed, CHANGELOG.md needs a line under "Numerics" that says
so: `--update` writes the new ones beside that line, found by its beginning, and refuses without
it. Exit code 1 where something is not what it was.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import changelog
import yaml
from in_memory import Host, record, scores_of, weights_of
from intervals import Scores, difference
from prints import digest, sums, unlike
from thin_zoo import on_thin, thin_zoo
from zoo_methods import DOMAINS, METHODS

import mergekit_lite
from mergekit_lite.ops import registry

STORED = Path(__file__).with_name("regression.json")
RECIPES = Path(__file__).resolve().parents[1] / "recipes"
WITHOUT_BYTES = {
    "zoo-regmean": "statistics of texts come before it",
    "compressed-experts": "patches come before it",
    "store-of-experts": "a store comes before it",
    "moe-carve": "texts are run through the model for it",
    "moe-cmoe-exact": "texts are run through the model for it",
    "moe-ridge": "texts are run through the model for it",
    "moe-upit": "it takes as long as twenty others; tests/moe hold its masks and draws",
}
"""Recipes of the zoo whose bytes are not held, and why."""
OF_MATRICES = {"core_space", "arrow"}
"""Beside the ops that compute much for each entry: what else libraries' last digits go into."""
SCORED = ("zoo-ties", "zoo-dare-ties", "zoo-iso-c", "zoo-tsv-merge")
"""Recipes whose scores CI measures."""
WINDOW_BYTES, WINDOWS = 256, 4
DRIFT = 0.002
"""Bits per byte by which a score may move before it is another one."""


@dataclass(frozen=True)
class Entry:
    """One merge that is held to what it gave.

    Attributes:
        name: of a recipe, or `method/NAME`.
        text: the recipe.
    """

    name: str
    text: str

    @property
    def is_exact(self) -> bool:
        """Whether the same bytes are promised on every machine."""
        matrices = {name for name, spec in registry().items() if spec.work} | OF_MATRICES
        said = "\n".join(line.partition("#")[0] for line in self.text.splitlines())
        return not matrices & set(re.findall(r"\w+", said))


def entries() -> dict[str, Entry]:
    """Return every recipe that is made of the zoo's weights alone, and every data-free method."""
    found = []
    for file in sorted(RECIPES.glob("*.y*ml")):
        text = file.read_text(encoding="utf-8")
        if "zoo:smol" in text and file.stem not in WITHOUT_BYTES:
            found.append(Entry(file.stem, text))
    for name, method in METHODS.items():
        found.append(Entry(f"method/{name}", yaml.safe_dump(method.recipe(), sort_keys=False)))
    return {entry.name: entry for entry in found}


def stored() -> dict[str, Any]:
    """Return what everything gave: bytes or sums by name, and scores by recipe."""
    known: dict[str, Any] = json.loads(STORED.read_text(encoding="utf-8"))
    return known


def made(entry: Entry, models: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Merge the thin models by an entry's recipe; return the digest of the bytes, or sums."""
    recipe, out = folder / "recipe.yaml", folder / "out"
    recipe.write_text(on_thin(entry.text, models), encoding="utf-8")
    mergekit_lite.run(recipe, out)
    try:
        if entry.is_exact:
            return {"sha256": digest(out)}
        return {"sums": sums(out, models["zoo:smol"])}
    finally:
        shutil.rmtree(out)


def change(now: Mapping[str, Any], then: Mapping[str, Any] | None) -> str:
    """Return what is not as it was, or nothing."""
    if then is None:
        return "nothing is stored of it"
    if now.keys() - {"numerics"} != then.keys() - {"numerics"}:
        return "it is held to another kind of number"
    if "sha256" in now:
        return "" if now["sha256"] == then["sha256"] else "other bytes"
    kinds = unlike(now["sums"], then["sums"])
    return f"other values in {', '.join(kinds)}" if kinds else ""


def lines_missing(known: Mapping[str, Any], text: str) -> list[str]:
    """Return the entries whose bytes were changed for a line that the changelog does not have."""
    there = set(changelog.numerics(text))
    return [
        f'{name}: no line under "Numerics" in CHANGELOG.md says "{was["numerics"]}"'
        for name, was in known["bytes"].items()
        if was.get("numerics") and was["numerics"] not in there
    ]


def scored(name: str, host: Host, folder: Path) -> Scores:
    """Merge the real zoo by a recipe that ships, and score the result on test text."""
    out = folder / "scored"
    mergekit_lite.run(RECIPES / f"{name}.yaml", out)
    host.put(weights_of(out))
    shutil.rmtree(out)
    return host.score("test", WINDOWS)


def drift(now: Scores, then: Scores) -> str:
    """Return by how much a score has left its interval, or nothing."""
    moved = difference(now, then)
    apart = moved.low > DRIFT or moved.high < -DRIFT
    return f"bits per byte moved by {moved}" if apart else ""


def can_be_scored(entry: Entry) -> bool:
    """Whether a recipe's result is the zoo's base with other weights."""
    return entry.name.startswith("zoo-") and entry.name not in (
        "zoo-frankenmerge",
        "zoo-new-tokens",
    )


def check_bytes(
    names: Sequence[str],
    known: dict[str, Any],
    folder: Path,
    *,
    update: bool = False,
    line: str | None = None,
) -> list[str]:
    """Merge every entry; return what changed.

    Args:
        names: of entries.
        known: what is stored.
        folder: for what is made on the way.
        update: note what is new, and what changed if there is a line for it.
        line: of the changelog.
    """
    problems = []
    models = thin_zoo(folder / "thin")
    for name in names:
        now = made(entries()[name], models, folder)
        then = known["bytes"].get(name)
        found = change(now, then)
        if found and update and (then is None or line):
            known["bytes"][name] = now | ({"numerics": line} if then else {})
        elif found:
            problems.append(f"{name}: {found}")
    return problems


def check_scores(
    names: Sequence[str], known: dict[str, Any], folder: Path, *, update: bool
) -> list[str]:
    """Score recipes; return which scores left their intervals, having noted them on `update`."""
    problems = []
    host = Host(DOMAINS, WINDOW_BYTES)
    for name in names:
        now = scored(name, host, folder)
        then = known["scores"].get(name)
        found = drift(now, scores_of(then)) if then else "nothing is stored of it"
        if found and update:
            known["scores"][name] = record(now)
        elif found:
            problems.append(f"{name}: {found}")
        print(name, found or "as it was", file=sys.stderr, flush=True)
    return problems


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", help="comma-separated; all by default")
    parser.add_argument("--scores", action="store_true", help="score recipes on the real zoo, too")
    parser.add_argument("--update", action="store_true", help="write what is new or has changed")
    parser.add_argument("--numerics", help="beginning of the line in CHANGELOG.md for what changed")
    return parser.parse_args()


def main() -> int:
    arguments = parsed()
    known = stored() if STORED.exists() else {"bytes": {}, "scores": {}}
    text = changelog.FILE.read_text(encoding="utf-8")
    try:
        line = changelog.entry(arguments.numerics, text) if arguments.numerics else None
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    all_of_them = entries()
    names = arguments.names.split(",") if arguments.names else list(all_of_them)
    update = arguments.update
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        problems = check_bytes(names, known, folder, update=update, line=line)
        if arguments.scores:
            these = [name for name in names if can_be_scored(all_of_them[name])]
            problems += check_scores(these, known, folder, update=update)
    if update:
        known["bytes"] = {
            name: known["bytes"][name] for name in all_of_them if name in known["bytes"]
        }
        STORED.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    problems += lines_missing(known, text)
    print("\n".join(problems) or f"{len(names)} merges are what they were.")
    if any("other bytes" in problem or "other values" in problem for problem in problems):
        print('Say under "Numerics" in CHANGELOG.md what changed, then --update --numerics "LINE".')
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
