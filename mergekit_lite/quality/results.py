"""Evaluations as JSON: for other programs, and as baselines of later ones."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mergekit_lite
from mergekit_lite.errors import DataError, Problem, SourceError
from mergekit_lite.quality.measures import measured
from mergekit_lite.quality.scores import Evaluation, Score, score_of, score_record
from mergekit_lite.quality.subjects import MERGE

FORMAT = 1


@dataclass(frozen=True)
class Baseline:
    """What an earlier model scored.

    Attributes:
        versions: name of the data -> digest of what its scores depend on.
        scores: name of the data -> score.
    """

    versions: Mapping[str, str]
    scores: Mapping[str, Score]


def record(found: Evaluation) -> dict[str, Any]:
    """Return an evaluation as JSON: summaries, and the units that `read_baseline` needs."""
    models = {
        name: {data: score_record(score) for data, score in scores.items()}
        for name, scores in found.scores.items()
    }
    for parent, likes in found.likeness.items():
        for data, like in likes.items():
            if like.tokens:
                models[parent][data] |= {"kl": like.mean_kl, "agreement": like.agreement}
            if like.similarities:
                models[parent][data]["similarity"] = like.similarity
    for parent, scores in found.scores.items():
        if parent != MERGE:
            for data, score in scores.items():
                recovery = asdict(measured("recovery", found.scores[MERGE][data], score))
                models[parent][data]["recovery"] = recovery
    return {
        "format": FORMAT,
        "mergekit_lite": mergekit_lite.__version__,
        "model": found.reference,
        "versions": dict(found.versions),
        "scores": models,
        "faults": [asdict(problem) for problem in found.faults],
    }


def write_results(found: Evaluation, file: Path) -> None:
    """Write an evaluation as JSON; the file appears complete or not at all."""
    partial = file.with_name(file.name + ".partial")
    text = json.dumps(record(found), indent=1, ensure_ascii=False)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, file)


def read_baseline(file: Path) -> Baseline:
    """Return what a model scored that was evaluated earlier.

    Raises:
        SourceError: there is no such file.
        DataError: it holds no results.
    """
    try:
        value = json.loads(file.read_bytes())
        scores = {name: score_of(one) for name, one in value["scores"][MERGE].items()}
        return Baseline({name: str(value["versions"][name]) for name in scores}, scores)
    except OSError as error:
        hint = "make it with `mergekit-lite eval ... --baseline FILE --update-baseline`"
        raise SourceError(f"cannot read the baseline: {error.strerror}", str(file), hint) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "make it again with --update-baseline"
        raise DataError("it holds no results of `eval`", str(file), hint) from error


def require_version(baseline: Baseline, versions: Mapping[str, str], file: Path) -> None:
    """Check that a baseline was scored on the very data that is scored now.

    Raises:
        DataError: it lacks data, or another version of it was scored.
    """
    problems = []
    for name, version in versions.items():
        if name not in baseline.versions:
            problems.append(Problem(f"the baseline has no scores of `{name}`", str(file)))
        elif baseline.versions[name] != version:
            what = f"the baseline was scored on another version of `{name}`"
            problems.append(Problem(what, str(file)))
    if problems:
        hint = "score the earlier model again, or accept this one's scores with --update-baseline"
        raise DataError([Problem(p.what, p.where, hint) for p in problems])
