"""Blend two models by a smooth curve over depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from mergekit_lite.ops._place import Place
from mergekit_lite.ops._spec import Doc, ExpertName, Range, Vector, preset


def check(params: Mapping[str, Any]) -> list[str]:
    """A curve needs more points than its degree."""
    points, degree = params["control_points"], params["degree"]
    if len(points) > degree:
        return []
    return [f"{len(points)} control points make no curve of degree {degree}; it takes {degree + 1}"]


def curve(points: Sequence[float], degree: int, depth: float) -> float:
    """Return the value of a clamped uniform B-spline at a depth of 0 to 1, by de Boor's rule."""
    spans = len(points) - degree
    span = min(int(depth * spans), spans - 1)
    knots = [0.0] * degree + [i / spans for i in range(spans + 1)] + [1.0] * degree
    values = list(points[span : span + degree + 1])
    for level in range(1, degree + 1):
        for j in range(degree, level - 1, -1):
            low, high = knots[span + j], knots[span + j + degree + 1 - level]
            share = (depth - low) / (high - low)
            values[j] = (1.0 - share) * values[j - 1] + share * values[j]
    return values[degree]


def depth_of(place: Place) -> float:
    """Return where a tensor is between input (0) and output (1), as gradients count it."""
    if place.layer is None:
        return 0.0 if place.role == "embedding" else 1.0
    return place.layer / (place.layers - 1) if place.layers > 1 else 0.0


BEZIER = {"source": "a", "control_points": [0, 0, 0, 1]}
LINE = {"source": "a", "control_points": [0, 1], "degree": 1}


@preset(
    title="B-spline blend over depth",
    paper="none: a blend of weights after the blend of hidden states in BenChaliah's Superposition",
    space="weight",
    experts=(1, None),
    check=check,
    vectors=[
        Vector([[8, -8]], [0, 0], BEZIER, layer=0, layers=3, source="begins at the first point"),
        Vector([[8, -8]], [1, -1], BEZIER, layer=1, layers=3, source="cubic: 1/8 half way"),
        Vector([[8, -8]], [8, -8], BEZIER, layer=2, layers=3, source="ends at the last point"),
        Vector([[8, -8]], [4, -4], LINE, layer=1, layers=3, source="degree 1 is a line, by hand"),
    ],
)
def bspline_blend(
    *,
    place: Place,
    source: Annotated[ExpertName, Doc("the expert that is blended with the base")],
    control_points: Annotated[
        tuple[float, ...],
        Range(at_least=0, at_most=1),
        Doc("from input to output: how much of the expert, 0 to 1; more than `degree` of them"),
    ],
    degree: Annotated[
        int, Range(at_least=1, at_most=7), Doc("of the curve; 1 is a line from point to point")
    ] = 3,
) -> list[tuple[str, dict[str, Any]]]:
    """Interpolate between the base and an expert by a smooth curve over depth.

    The share of the expert in layer l of L is a clamped uniform B-spline at l / (L - 1); it begins
    at the first control point and ends at the last. Embeddings have depth 0, all else outside the
    layers depth 1. The published method blends hidden states and trains; this blends weights.
    """
    share = curve(control_points, degree, depth_of(place))
    if share in (0.0, 1.0):
        return [("take", {"source": source if share else "base"})]
    return [("linear", {"weights": {"base": 1.0 - share, source: share}, "normalize": False})]
