"""LiNeS: scale the merged task vector up with depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._place import Place, Sums
from mergekit_lite.ops._spec import Doc, Vector, post
from mergekit_lite.ops._statistics import Totals

if TYPE_CHECKING:
    from torch import Tensor


def sum_and_merged(
    values: Sequence[Tensor], place: Place, params: Mapping[str, Any]
) -> list[Tensor]:
    """`auto` compares the sum of all task vectors with what the chain has made of them."""
    merged, first, *others = values
    total = first.float().clone()
    for delta in others:
        total += delta.float()
    return [total, merged]


def resolved_alpha(alpha: float | Literal["auto"], sums: Sums | None, experts: int) -> float:
    """Return the factor of the first layer."""
    if not isinstance(alpha, str):
        return alpha
    added, merged = sums.absolute if sums else (0.0, 0.0)
    return (added / merged if merged else 1.0) / max(experts, 1)


def _vector(layer: int | None, expect: float, source: str, **params: Any) -> Vector:
    return Vector([[1, 1], [1, 1]], [expect] * 2, params, layer=layer, layers=5, source=source)


@post(
    title="LiNeS: layer-increasing scaling",
    paper="Wang et al. 2025, arXiv 2410.17146",
    needs=Totals(
        whole=True,
        absolute=True,
        wanted=lambda params: params["alpha"] == "auto",
        inputs=sum_and_merged,
        depends=("alpha",),
    ),
    vectors=[
        _vector(0, 1.0, "of two equal task vectors: alpha = 1/2, times their sum, by hand"),
        _vector(4, 2.0, "the last layer: 1/2 + 1/2, by hand"),
        _vector(2, 1.5, "the middle one: 1/2 + 1/4, by hand"),
        _vector(None, 1.0, "outside the layers: alpha, by hand"),
        _vector(4, 1.5, "alpha and beta given, the last layer, by hand", alpha=0.25, beta=0.5),
        _vector(1, 0.75, "alpha and beta given, layer 1 of 0..4, by hand", alpha=0.25, beta=0.5),
        Vector([[3]], [1.5], {"alpha": 0.25, "beta": 0.25}, layer=0, source="a single layer"),
    ],
)
def lines(
    merged: Tensor,
    *,
    place: Place,
    sums: Sums | None,
    deltas: Sequence[Tensor],
    alpha: Annotated[
        float | Literal["auto"],
        Doc("factor of the first layer and of all outside the layers; `auto`: see below"),
    ] = "auto",
    beta: Annotated[
        float | None, Doc("what the last layer has more than the first; null: 1 - alpha")
    ] = None,
) -> Tensor:
    """Scale the merged task vector by a factor that grows linearly with depth.

    Shallow layers are general and are kept closer to the base, deep ones are specific to their
    tasks. Layer l of L has the factor alpha + beta * l/(L-1), a single layer alpha + beta; what is
    in no layer has alpha. An encoder and a decoder each count their own layers.

    `alpha: auto` gives the first layer the size of an average of the N task vectors: the sum of
    magnitudes of their sum, over that of the merged task vector, over N, both over the whole model.
    For plain task arithmetic this is 1/N.

    Order of operations: a = alpha, or (|sum| / |merged|) / N in fp64, 1/N where nothing was
    merged; s = float32(a + beta * (l/(L-1))); y = x * s.
    """
    start = resolved_alpha(alpha, sums, len(deltas))
    slope = 1.0 - start if beta is None else beta
    if place.layer is None:
        return merged.float() * single(start)
    depth = place.layer / (place.layers - 1) if place.layers > 1 else 1.0
    return merged.float() * single(start + slope * depth)
