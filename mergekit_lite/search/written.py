"""The best recipe as a file, with what it scored and how it was found."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import mergekit_lite
from mergekit_lite.quality.scores import PairScore, Score, TaskScore, TextScore
from mergekit_lite.recipe.compat.write import flow
from mergekit_lite.recipe.marks import Node
from mergekit_lite.recipe.schema import Objective
from mergekit_lite.search.run import Found
from mergekit_lite.search.task import shown
from mergekit_lite.search.trials import Trial

_REFERENCES = ("base", "model", "lora")


def write_best(found: Found, file: Path) -> None:
    """Write the best recipe; the file appears complete or not at all."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(best_text(found, file.absolute().parent), encoding="utf-8")
    os.replace(partial, file)


def best_text(found: Found, folder: Path) -> str:
    """Return the best recipe as YAML, after comments on how it was found.

    Args:
        found: what a search came to.
        folder: where the text will stand, from which its paths are spelt.
    """
    root = respelt(found.root, found.task.tree.folder, folder)
    lines = [f"# {line}".rstrip() for line in _told(found)]
    entries = root.entries()
    lines += [] if "schema_version" in entries else ["schema_version: 1"]
    lines += [f"{flow(key)}: {flow(node.plain())}" for key, node in entries.items()]
    return "\n".join(lines) + "\n"


def respelt(root: Node, old: Path, new: Path) -> Node:
    """Return a recipe whose models and files are spelt from another folder."""
    if old.resolve() == new.resolve():
        return root

    def moved(node: Node, *, reference: bool) -> Node:
        path = Path(node.value).expanduser()
        named = reference or path.suffix or node.value.startswith(("./", "../"))
        if not named or path.is_absolute() or not (old / path).exists():
            return node
        spelt = os.path.relpath(old / path, new)
        return node.with_value(spelt if spelt.startswith("..") else f"./{spelt}")

    def walk(node: Node, key: str = "") -> Node:
        if isinstance(node.value, dict):
            is_experts = key == "experts"
            inner = {
                k: walk(v, "model" if is_experts and isinstance(v.value, str) else k)
                for k, v in node.value.items()
            }
            return node.with_value(inner)
        if isinstance(node.value, list):
            return node.with_value([walk(item) for item in node.value])
        if isinstance(node.value, str) and node.value and not node.value.startswith("@"):
            return moved(node, reference=key in _REFERENCES)
        return node

    return walk(root)


def _told(found: Found) -> Iterator[str]:
    task, strategy, best = found.task, found.strategy, found.best
    states = [trial.state for trial in found.trials]
    counted = ", ".join(
        f"{states.count(state)} {word}"
        for state, word in (("pruned", "left on the way"), ("failed", "failed"))
        if state in states
    )
    yield f"Found by mergekit-lite {mergekit_lite.__version__} from {task.tree.name}:"
    yield (
        f"{strategy.method}, seed {strategy.seed}, {len(states)} candidates"
        + (f" ({counted})" if counted else "")
        + f"; this is number {best.number}."
    )
    yield f"  {shown(best.values)}"
    yield "On validation data:"
    for line in scores_lines(task.objectives, best):
        yield f"  {line}"
    for name, score in found.test.items():
        before = ", which an earlier call had looked at" if found.told_before else ""
        yield f"On held-out data{before}: {name} {score_text(score)}"
    for one in (*task.data, *task.test):
        file = task.files[one.name]
        yield f"Data {one.name} ({Path(file).name}): {len(one)} pieces, sha256 {one.version}"
    for trial in found.front:
        if trial.number != best.number:
            values = " ".join(f"{score:.4f}" for score in trial.scores)
            yield f"No worse, number {trial.number}: {values}; {shown(trial.values)}"


def scores_lines(objectives: Sequence[Objective], trial: Trial) -> list[str]:
    """Return what a candidate scored, an objective a line."""
    return [
        f"{named(objective)} {score:.4f}"
        for objective, score in zip(objectives, trial.scores, strict=True)
    ]


def named(objective: Objective) -> str:
    """Return the words for an objective."""
    against = f" against {objective.against}" if objective.against else ""
    return f"{objective.data}: {objective.score}{against}"


def score_text(score: Score) -> str:
    """Return a score in words."""
    if isinstance(score, TextScore):
        return f"{score.bits_per_byte:.4f} bits per byte"
    if isinstance(score, PairScore):
        return f"correlation {score.correlation:.4f}"
    if isinstance(score, TaskScore):
        return f"{score.metric} {score.mean:.4f}"
    return f"{100 * score.accuracy:.1f} % right of {len(score.answers)}"
