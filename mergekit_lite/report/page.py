"""The report as one self-contained HTML page that can be read on a phone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files

from mergekit_lite.report.charts import Value, lines, matrix, strips, table
from mergekit_lite.report.vectors import Sums, Vectors


def page(found: Vectors, further: Sequence[str] = ()) -> str:
    """Return the page; it needs no network, no script and no other file.

    Args:
        found: what was measured of the task vectors.
        further: parts about the result, in HTML, such as those of `scored.py`.
    """
    style = (files("mergekit_lite.report") / "page.css").read_text(encoding="utf-8")
    title = f"Task vectors of {found.recipe}"
    body = "\n".join([_opening(found), *further, _cosines(found), _norms(found),
                      _conflicts(found), _overlap(found), _rules(found)])  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _opening(found: Vectors) -> str:
    total = found.total
    rows = [
        [name, reference, f"{total.norm(i):.4g}", _percent(total.relative(i)), _kept(total, i)]
        for i, (name, reference) in enumerate(found.experts.items())
    ]
    head = ["expert", "model", "norm of its task vector", "relative to the base", "entries kept"]
    return (
        "<p>A task vector is an expert's weights minus the base's. This page shows how far the "
        "experts moved, where, and whether they pull the same way.</p>"
        f"<dl><dt>base</dt><dd>{escape(found.base)}</dd><dt>tensors</dt><dd>{total.tensors:,}</dd>"
        f"<dt>entries</dt><dd>{total.entries:,}</dd><dt>layers</dt><dd>{found.layers}</dd></dl>"
        + table(head, rows)
    )


def _cosines(found: Vectors) -> str:
    if len(found.names) < 2:
        return ""
    names, total = found.names, found.total
    roles = found.by_role()
    parts = [
        "<h2>Do they point the same way?</h2>",
        "<p>Cosine between task vectors: 1 is the same direction, 0 is independent (they add up "
        "without disturbing each other much), below 0 they undo each other.</p>",
        '<div class="charts"><div><h3>Whole model</h3>',
        matrix(names, names, lambda i, j: 1.0 if i == j else total.cosine(i, j), _two),
        "</div><div><h3>By layer</h3>",
        _by_layer(found, "cosine of each pair", lambda s, a, b: s.cosine(a, b)),
        "</div></div><h3>By role</h3>",
        _by_role(found, roles, lambda s, a, b: s.cosine(a, b), _two),
    ]
    return "".join(parts)


def _norms(found: Vectors) -> str:
    layers = found.by_layer()
    series = {
        name: [sums.relative(i) for sums in layers.values()] for i, name in enumerate(found.names)
    }
    roles = found.by_role()
    return "".join(
        [
            "<h2>How far did they move?</h2>",
            "<p>Norm of the task vector over the norm of the base's weights.</p>",
            '<div class="charts"><div><h3>Over depth</h3>',
            lines(series, label="relative norm over depth", axis="layer", text=_percent_of),
            "</div><div><h3>By role</h3>",
            matrix(
                list(roles),
                found.names,
                lambda i, j: list(roles.values())[i].relative(j),
                _percent_of,
            ),
            "</div></div>",
        ]
    )


def _conflicts(found: Vectors) -> str:
    if len(found.names) < 2:
        return ""
    layers = list(found.by_layer().values())
    series: dict[str, list[Value]] = {"all entries": [s.raw.conflict_share for s in layers]}
    if found.trimmed:
        series["entries kept by the recipe"] = [s.kept.conflict_share for s in layers]
    total = found.total
    kept = f"; {_percent(total.kept.conflict_share)} of those kept" if found.trimmed else ""
    expected = 1 - 0.5 ** (len(found.names) - 1)
    return "".join(
        [
            "<h2>Where do they disagree?</h2>",
            "<p>Share of entries where two experts change a weight in opposite directions, among "
            f"those that at least two change: {_percent(total.raw.conflict_share)} of all{kept}. "
            f"Signs drawn by chance would give {_percent(expected)} where all of them have a say."
            "</p>",
            lines(series, label="share of sign conflicts", axis="layer", text=_percent_of),
        ]
    )


def _overlap(found: Vectors) -> str:
    if len(found.names) < 2:
        return ""
    names, total = found.names, found.total
    what = (
        "that the recipe's transforms keep (after trimming, dropping and the like)"
        if found.trimmed
        else "that each expert changes (this recipe drops none)"
    )
    return "".join(
        [
            "<h2>Do they need the same entries?</h2>",
            f"<p>Overlap of the entries {what}: those of both over those of either.</p>",
            '<div class="charts"><div><h3>Whole model</h3>',
            matrix(names, names, lambda i, j: total.kept.overlap(i, j), _percent_of),
            "</div><div><h3>By layer</h3>",
            _by_layer(
                found, "overlap of each pair", lambda s, a, b: s.kept.overlap(a, b), _percent_of
            ),
            "</div></div>",
        ]
    )


def _rules(found: Vectors) -> str:
    rows = [[t.where, t.what, f"{t.tensors:,}", f"{t.entries:,}"] for t in found.touched]
    return (
        "<h2>What each rule decides</h2><p>Tensors of the output, by the place in the recipe that "
        "decides about them.</p>" + table(["place", "decision", "tensors", "entries"], rows)
    )


Between = Callable[[Sums, int, int], Value]


def _by_layer(
    found: Vectors, label: str, value: Between, text: Callable[[float], str] | None = None
) -> str:
    layers = found.by_layer().values()
    rows = {
        f"{found.names[a]} and {found.names[b]}": [value(s, a, b) for s in layers]
        for a, b in found.pairs
    }
    return strips(rows, label=label, axis="layer", text=text or _two)


def _by_role(
    found: Vectors, roles: dict[str, Sums], value: Between, text: Callable[[float], str]
) -> str:
    pairs = found.pairs
    columns = [f"{found.names[a]} ~ {found.names[b]}" for a, b in pairs]
    sums = list(roles.values())
    return matrix(list(roles), columns, lambda i, j: value(sums[i], *pairs[j]), text)


def _kept(total: Sums, expert: int) -> str:
    return _percent(int(total.kept.both[expert, expert]) / total.entries if total.entries else None)


def _percent(value: Value) -> str:
    return "-" if value is None else _percent_of(value)


def _percent_of(value: float) -> str:
    return f"{100 * value:.3g}%"


def _two(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3f}"
