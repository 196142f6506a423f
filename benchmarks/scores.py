"""Score every data-free method and RegMean on the zoo, side by side, with paired intervals.

    python benchmarks/scores.py --json scores.json       # all methods, about 40 minutes of a core
    python benchmarks/scores.py --methods ties,iso_c --recipe search=best.yaml --json scores.json

Each method merges the zoo's three adapters (or as many as it takes) with its default parameters.
Where the merged difference to the base can be scaled, the scale is the best of four or more on
validation text; the table is of test text, which nothing was chosen on and every row sees once.
`--recipe` adds a row of a recipe as it is. A JSON file that is there is taken up: rows in it are
not measured again. Exit code 1 where an order in `ORDERS` does not hold. Needs the extra `zoo`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from in_memory import Host, Weights, best_scale, record, scores_of, weights_of
from intervals import Windows, difference, mean
from zoo_methods import DOMAINS, MEASURED, METHODS, REFERENCES, Method

import mergekit_lite
from mergekit_lite.calibrate.run import calibrate
from mergekit_lite.calibrate.texts import read_texts
from mergekit_lite.sources import resolve

__all__ = ["DOMAINS", "METHODS", "REFERENCES"]
BASE, OWN, CONTROL = "base", "experts, own domain", "experts x1.5, own domain"
ALL = {**METHODS, **MEASURED}
EXPERTS = tuple(f"expert {name}" for name in DOMAINS)
ORDERS = (
    (BASE, "linear"),
    ("linear", "task_arithmetic"),
    ("linear", "ties"),
    ("linear", "dare_ties"),
    ("task_arithmetic", "tsv_merge"),
    ("task_arithmetic", "iso_c"),
    ("iso_c", "regmean"),
    ("tsv_merge", OWN),
)
"""Worse, better: orders whose intervals were apart. TIES and task arithmetic are not among them."""


@dataclass(frozen=True)
class Options:
    """What is scored on.

    Attributes:
        window_bytes: size of a window.
        validation: windows of each domain that scales are chosen on.
        test: windows of each domain that the table is of.
        folder: for what is made on the way.
    """

    window_bytes: int
    validation: int
    test: int
    folder: Path


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def statistics(options: Options, host: Host) -> Path:
    """Measure the base on the validation text that no scale is chosen on; return the folder."""
    home = options.folder / "statistics"
    for domain in DOMAINS:
        if (home / domain).exists():
            continue
        text = options.folder / f"{domain}.txt"
        left = host.texts[domain, "validation"][options.validation :]
        text.write_text("".join(left), encoding="utf-8")
        model = resolve("zoo:smol", relative_to=Path(), kind="checkpoint")
        calibrate(model, read_texts([text]), home / domain)
    return home


def merged(recipe: Mapping[str, Any] | Path, options: Options) -> Weights:
    out = options.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    mergekit_lite.run(recipe, out)
    found = weights_of(out)
    shutil.rmtree(out)
    return found


def measure(method: Method, host: Host, options: Options) -> dict[str, Any]:
    """Choose the scale on validation text and return the scores on test text."""
    home = statistics(options, host) if method in MEASURED.values() else Path()
    began = time.process_time()
    weights = merged(method.recipe(statistics=home, dtype="float32"), options)
    seconds = time.process_time() - began

    def loss(scale: float) -> float:
        host.put(weights, scale)
        return mean(host.score("validation", options.validation))

    scale, tried = best_scale(loss) if method.is_scaled else (1.0, {})
    host.put(weights, scale)
    found = record(host.score("test", options.test))
    return found | {"scale": scale if tried else None, "validation": tried, "seconds": seconds}


def references(host: Host, options: Options, found: dict[str, Any]) -> None:
    """Score the base, each expert, and each on its own domain, as it is and scaled by 1.5."""
    host.put(host.base)
    found[BASE] = record(host.score("test", options.test))
    own: dict[float, dict[str, Windows]] = {1.0: {}, 1.5: {}}
    for domain, name in zip(DOMAINS, EXPERTS, strict=True):
        say(name)
        alone = Method(["task_arithmetic"], (domain,))
        weights = merged(alone.recipe(dtype="float32"), options)
        for scale, taken in own.items():
            host.put(weights, scale)
            scores = host.score("test", options.test)
            taken[domain] = scores[domain]
            if scale == 1:
                found[name] = record(scores)
    found[OWN], found[CONTROL] = record(own[1.0]), record(own[1.5])


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the scores as Markdown; differences that are apart from 0 in bold."""
    known = {name: scores_of(row) for name, row in found.items()}
    floor, ceiling = mean(known[BASE]), mean(known[OWN])
    against = "task_arithmetic" if "task_arithmetic" in known else BASE
    lines = [
        f"| method | scale | {' | '.join(DOMAINS)} | mean | gap closed | less {against} [95 %] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, scores in sorted(known.items(), key=lambda item: -mean(item[1])):
        cells = [f"{float(scores[domain].bits_per_byte()):.3f}" for domain in DOMAINS]
        scale = found[name].get("scale")
        closed = (floor - mean(scores)) / (floor - ceiling)
        apart = difference(scores, known[against])
        shown = "" if name == against else f"**{apart}**" if apart.is_apart else str(apart)
        row = [name, "" if scale is None else f"{scale:g}", *cells, f"{mean(scores):.3f}"]
        lines.append(f"| {' | '.join([*row, f'{closed:.0%}', shown])} |")
    return "\n".join(lines)


def wrong_orders(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the orders of `ORDERS` that do not hold, with their intervals."""
    wrong = []
    for worse, better in ORDERS:
        if worse in found and better in found:
            apart = difference(scores_of(found[worse]), scores_of(found[better]))
            if not (apart.is_apart and apart.value > 0):
                wrong.append(f"{worse} is not worse than {better}: {apart}")
    return wrong


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default=",".join(ALL), help="comma-separated")
    parser.add_argument("--recipe", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--window-bytes", type=int, default=256)
    parser.add_argument("--validation", type=int, default=2, help="windows of each domain")
    parser.add_argument("--test", type=int, default=10, help="windows of each domain")
    parser.add_argument("--json", type=Path, help="write, and take up, every figure here")
    arguments = parser.parse_args()
    arguments.methods = arguments.methods.split(",")
    if unknown := [name for name in arguments.methods if name not in ALL]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(ALL)}")
    return arguments


def main() -> int:
    arguments = parsed()
    file: Path | None = arguments.json
    settings = [arguments.window_bytes, arguments.validation, arguments.test]
    stored: dict[str, Any] = {"settings": settings, "rows": {}}
    if file and file.exists():
        stored = json.loads(file.read_text(encoding="utf-8"))
    if stored["settings"] != settings:
        say(f"{file} has scores of other windows: {stored['settings']}, not {settings}")
        return 2
    found: dict[str, Any] = stored["rows"]

    def save() -> None:
        if file:
            file.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as scratch:
        options = Options(
            arguments.window_bytes, arguments.validation, arguments.test, Path(scratch)
        )
        host = Host(DOMAINS, options.window_bytes)
        if CONTROL not in found:
            references(host, options, found)
            save()
        for name in (name for name in arguments.methods if name not in found):
            say(name)
            found[name] = measure(ALL[name], host, options)
            save()
        for name, _, recipe in (each.partition("=") for each in arguments.recipe):
            if name not in found:
                say(name)
                host.put(merged(Path(recipe), options))
                found[name] = record(host.score("test", options.test))
                save()
    print(table(found))
    wrong = wrong_orders(found)
    print("\n".join(["", *(wrong or ["All known orders hold."])]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
