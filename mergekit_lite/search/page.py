"""A search as one self-contained HTML page: how it went, and what is traded for what."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from itertools import combinations

from mergekit_lite.report.charts import legend, table
from mergekit_lite.report.scatter import Point, scatter
from mergekit_lite.search.run import Found
from mergekit_lite.search.task import shown
from mergekit_lite.search.trials import Trial
from mergekit_lite.search.written import named, score_text

_KINDS = ("a candidate", "one that nothing beats in every objective", "the chosen one")


def page(found: Found) -> str:
    """Return the page; it needs no network, no script and no other file."""
    style = (files("mergekit_lite.report") / "page.css").read_text(encoding="utf-8")
    title = f"Search of {found.task.tree.name}"
    body = "\n".join([_opening(found), _course(found), _trades(found), _listed(found)])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _opening(found: Found) -> str:
    rows = [["chosen", shown(found.best.values)]]
    pairs = zip(found.task.objectives, found.best.scores, strict=True)
    rows += [[named(objective), f"{score:.4f}"] for objective, score in pairs]
    rows += [[f"held-out {name}", score_text(score)] for name, score in found.test.items()]
    counted = f"{found.strategy.method}, {len(found.trials)} candidates, number {found.best.number}"
    return f"<p>{escape(counted)} was chosen.</p>" + table(["", ""], rows)


def _complete(found: Found) -> list[Trial]:
    return [trial for trial in found.trials if trial.state == "complete"]


def _title(trial: Trial) -> str:
    scores = " ".join(f"{score:.4f}" for score in trial.scores)
    return f"number {trial.number}: {scores}; {shown(trial.values)}"


def _series(found: Found, trial: Trial) -> int:
    if trial.number == found.best.number:
        return 2
    return int(trial.number in {each.number for each in found.front})


def _course(found: Found) -> str:
    points = [
        Point(trial.number, trial.loss, _title(trial), _series(found, trial))
        for trial in _complete(found)
    ]
    drawn = scatter(points, label="loss of every candidate", across="candidate", up="loss")
    return f"<h2>How it went</h2><p>Loss of every candidate; less is better.</p>{drawn}"


def _trades(found: Found) -> str:
    names = [named(objective) for objective in found.task.objectives]
    pairs = list(combinations(range(len(names)), 2))[:6]
    if not pairs:
        return ""
    front = {trial.number for trial in found.front}
    charts = []
    for a, b in pairs:
        points = [
            Point(
                trial.scores[a],
                trial.scores[b],
                _title(trial),
                _series(found, trial),
                joined=len(names) == 2 and trial.number in front,
            )
            for trial in _complete(found)
        ]
        label = f"{names[b]} over {names[a]}"
        charts.append(f"<div>{scatter(points, label=label, across=names[a], up=names[b])}</div>")
    told = "<p>What is gained in one objective is lost in another along the edge of the points.</p>"
    drawn = f'<div class="charts">{"".join(charts)}</div>{legend(list(_KINDS))}'
    return f"<h2>What is traded for what</h2>{told}{drawn}"


def _listed(found: Found) -> str:
    head = ["number", "", *map(named, found.task.objectives), "values"]
    width = len(found.task.objectives)
    rows = [
        [
            str(trial.number),
            {"complete": "", "pruned": "left on the way"}.get(trial.state, trial.state),
            *([f"{score:.4f}" for score in trial.scores] or [""] * width),
            shown(trial.values),
        ]
        for trial in found.trials
    ]
    return f"<h2>All candidates</h2>{table(head, rows)}"
