"""A search over the zoo's experts against every method as it comes, on text that is looked at once.

    python benchmarks/search.py                             # about an hour of two cores
    python benchmarks/search.py --trials 12 --methods ties,tsv_merge --no-references

The search is that of `recipes/zoo-search.yaml`: it chooses by validation text, and sees no other.
Then it, and every method of `benchmarks/scores.py` with its default parameters, is scored once on
test text, in one table with the paired 95 % interval of each method's excess over the search. Needs
the extras `zoo` and `search`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scores import DOMAINS, METHODS, REFERENCES

from mergekit_lite.engine.options import Options
from mergekit_lite.plan.build import prepare
from mergekit_lite.quality.data import Texts, read_data
from mergekit_lite.quality.evaluate import scores_of
from mergekit_lite.quality.forward import Pass, Settings
from mergekit_lite.quality.measures import DRAWS, SEED
from mergekit_lite.quality.scores import TextScore
from mergekit_lite.quality.subjects import Subject, subject
from mergekit_lite.recipe import load
from mergekit_lite.search.held import held
from mergekit_lite.search.run import search
from mergekit_lite.search.study import Strategy
from mergekit_lite.search.task import Wanted, read_task, shown

RECIPE = Path(__file__).parent.parent / "recipes" / "zoo-search.yaml"
Scores = Mapping[str, TextScore]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def mean(scores: Scores) -> float:
    """Return the mean bits per byte of the domains."""
    return sum(score.bits_per_byte for score in scores.values()) / len(scores)


def excess(scores: Scores, found: Scores) -> tuple[float, float, float]:
    """Return how much more bits per byte a model takes, and its paired 95 % interval.

    Windows of each domain are drawn with repetition, the same ones for both.
    """
    generator = np.random.Generator(np.random.Philox(SEED))
    drawn = np.zeros(DRAWS)
    for name in DOMAINS:
        units = len(found[name].nats)
        picked = generator.integers(units, size=(DRAWS, units))
        own, other = (np.array(s[name].nats)[picked].sum(1) for s in (scores, found))
        nbytes = np.array(found[name].nbytes)[picked].sum(1)
        drawn += (own - other) / nbytes / np.log(2) / len(DOMAINS)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return mean(scores) - mean(found), float(low), float(high)


def scored(
    recipes: Mapping[str, dict[str, object]], references: Sequence[str], windows: int
) -> dict[str, Scores]:
    """Return the scores on test text of every recipe's result, and of models as they are."""
    texts = read_data({name: f"zoo:{name}" for name in DOMAINS}, most=windows)
    found: dict[str, Scores] = {}
    for name, recipe in recipes.items():
        began = time.monotonic()
        plan, models = prepare(load({**recipe, "output": {"dtype": "bfloat16"}}))
        model = held(plan, models, Settings(), Options())
        model.merge(plan)
        run = Pass(Subject(name, models["base"]), texts, Settings(), model.loaded)
        found[name] = _run(run, texts)
        model.close()
        say(f"{name}: {mean(found[name]):.4f}, {time.monotonic() - began:.0f} s")
    for name in references:
        run = Pass(subject(name, name, base="zoo:smol"), texts, Settings())
        found[name] = _run(run, texts)
        run.close()
        say(f"{name}: {mean(found[name]):.4f}")
    return found


def _run(run: Pass, texts: Sequence[object]) -> Scores:
    data = [each for each in texts if isinstance(each, Texts)]
    run.run(lambda text: None)
    scores = scores_of(run.pieces, run.predicted(), data, [])
    return {name: score for name, score in scores.items() if isinstance(score, TextScore)}


def rows(found: Mapping[str, Scores]) -> list[str]:
    """Return the table in Markdown."""
    head = "| method | german | french | dictionary | mean | more than the search, 95 % |"
    lines = [head, "|---|---|---|---|---|---|"]
    for name, scores in sorted(found.items(), key=lambda item: mean(item[1])):
        cells = [f"{scores[domain].bits_per_byte:.3f}" for domain in DOMAINS]
        more, low, high = excess(scores, found["search"])
        told = "" if name == "search" else f"{more:.4f} [{low:.4f}, {high:.4f}]"
        lines.append(f"| {name} | {' | '.join(cells)} | {mean(scores):.4f} | {told} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--windows", type=int, default=6, help="of test text, for each domain")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--no-references", action="store_true", help="no base and experts")
    parser.add_argument("--storage", help="file that keeps candidates between calls")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    task = replace(read_task(RECIPE, (), Wanted({}, {})), test=())
    best = search(
        task,
        Strategy(trials=options.trials, storage=options.storage),
        Settings(),
        tell=say,
        tell_trial=lambda trial: say(f"{trial.number}: {trial.loss:.4f} {shown(trial.values)}"),
    )
    say(f"best: {shown(best.best.values)}")
    recipes = {"search": dict(task.root_of(best.best.values).plain())}
    for name in options.methods.split(","):
        method = METHODS[name]
        if set(method.experts) == set(DOMAINS):
            recipes[name] = replace(method, is_scaled=False).recipe(1.0)
    found = scored(recipes, () if options.no_references else REFERENCES, options.windows)
    print("\n".join(rows(found)))
    print(f"\nchosen: {shown(best.best.values)}, of {len(best.trials)} candidates")
    if options.json is not None:
        told = {name: {d: s.nats for d, s in scores.items()} for name, scores in found.items()}
        options.json.write_text(json.dumps(told, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
