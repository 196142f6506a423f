"""Parts of the page that are of scores: results of `eval --json` and `moe probe --json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mergekit_lite.errors import DataError, SourceError
from mergekit_lite.report.charts import lines, matrix, table

MERGE = "merge"
"""What results call the model itself."""
Results = Mapping[str, Any]


def read_section(file: Path, section: Callable[[Results], str], command: str) -> str:
    """Return a part of the page, made of a file of results.

    Args:
        file: JSON.
        section: makes the part.
        command: what writes such files, for messages.

    Raises:
        SourceError: there is no such file.
        DataError: it holds other things.
    """
    hint = f"write it with `mergekit-lite {command} --json > FILE`"
    try:
        return section(json.loads(file.read_bytes()))
    except OSError as error:
        raise SourceError(f"cannot read it: {error.strerror}", str(file), hint) from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"it holds no results of `{command}`", str(file), hint) from error


def scores_section(results: Results) -> str:
    """Return tables of what the model and its parents score, and of what is left of each parent.

    Args:
        results: of `eval --json`.
    """
    scores: Mapping[str, Mapping[str, Any]] = results["scores"]
    data = list(scores[MERGE])
    parts = [
        "<h2>What does it score?</h2>",
        f"<p>{escape(str(results['model']))}. Of texts the bits that a byte needs, fewer are "
        "better; of questions and labels the part that is right.</p>",
        table(["model", *map(_head(scores[MERGE]), data)], _score_rows(scores, data)),
    ]
    parents = [name for name in scores if name != MERGE]
    if parents:
        parts += [
            "<h2>What is left of each parent?</h2>",
            "<p>Recovery: 1 is as good as the parent, more is better; with the middle 95 % of what "
            "drawing windows or questions again gives. Where the base is nearly as good as an "
            "expert, any merge recovers much.</p>",
            table(["parent", *data], _recovery_rows(scores, parents, data)),
        ]
    faults: Sequence[Mapping[str, Any]] = results["faults"]
    if faults:
        rows = [[str(fault["what"]), str(fault["where"])] for fault in faults]
        parts += ["<h2>Faults</h2>", table(["fault", "where"], rows)]
    return "".join(parts)


def routing_section(results: Results) -> str:
    """Return which expert a routed model sends which texts to, over all layers and layer by layer.

    Args:
        results: of `moe probe --json`.
    """
    domains, experts, layers = results["domains"], results["experts"], results["layers"]
    names = [f"{i}: {name}" for i, name in enumerate(map(str, experts))]

    def share(layer: Mapping[str, Any], domain: int, expert: int) -> float:
        return float(layer["chosen"][domain][expert])

    def mean(domain: int, expert: int) -> float:
        return sum(share(layer, domain, expert) for layer in layers) / len(layers)

    parts = [
        "<h2>Where do its routers send texts?</h2>",
        "<p>Part of each domain's tokens whose first choice is the expert; mean over "
        f"{len(layers)} routed layers. {100 * results['tokens_right']:.1f}% of the tokens, and "
        f"{100 * results['texts_right']:.1f}% of the texts, go to an expert of their domain.</p>",
        matrix(list(map(str, domains)), names, mean, _percent),
        '<h3>Over depth</h3><div class="charts">',
    ]
    for number, domain in enumerate(map(str, domains)):
        series = {
            name: [share(layer, number, expert) for layer in layers]
            for expert, name in enumerate(names)
        }
        drawn = lines(series, label=f"choices for {domain}", axis="routed layer", text=_percent)
        parts.append(f"<div><h3>{escape(domain)}</h3>{drawn}</div>")
    parts.append("</div>")
    return "".join(parts)


def _head(scores: Mapping[str, Any]) -> Callable[[str], str]:
    return lambda data: f"{data} ({_kind(scores[data]).replace('_', ' ')})"


_KINDS = ("bits_per_byte", "accuracy", "correlation", "mean")


def _kind(score: Mapping[str, Any]) -> str:
    return next((kind for kind in _KINDS if kind in score), "accuracy")


def _score_rows(scores: Mapping[str, Mapping[str, Any]], data: Sequence[str]) -> list[list[str]]:
    return [
        [name, *(_number(row[one][_kind(row[one])]) for one in data)]
        for name, row in scores.items()
    ]


def _recovery_rows(
    scores: Mapping[str, Mapping[str, Any]], parents: Sequence[str], data: Sequence[str]
) -> list[list[str]]:
    found = {name: [scores[name][one]["recovery"] for one in data] for name in parents}
    return [
        [name, *(f"{_number(r['value'])} [{_number(r['low'])}, {_number(r['high'])}]" for r in row)]
        for name, row in found.items()
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"
