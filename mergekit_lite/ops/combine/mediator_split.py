"""Average the layers that the experts agree on, and keep one expert's where they conflict."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from mergekit_lite.ops._arithmetic import divide, negligible, total_weight, weighted_sum
from mergekit_lite.ops._place import Place, Sums
from mergekit_lite.ops._spec import Doc, ExpertName, Range, Vector, combine
from mergekit_lite.ops._statistics import OUTSIDE, Answer, Order, Totals

if TYPE_CHECKING:
    from torch import Tensor

TAUS = [[4, -3, 1, 0.5], [-1, -5, 2, -0.5]]


def ranks(params: Mapping[str, Any], size: int) -> tuple[int, ...]:
    """The last entry of an expert that counts as a change of its own."""
    return (max(1, int(params["density"] * size)),) if size else ()


def opposed(
    values: Sequence[Tensor], place: Place, params: Mapping[str, Any], found: tuple[Answer, ...]
) -> list[Tensor]:
    """Mark the entries that two experts pull apart, and all entries."""
    import torch

    up = torch.zeros_like(values[0], dtype=torch.bool)
    down = torch.zeros_like(up)
    for value, cuts in zip(values, found[0], strict=False):
        kept = value.abs() >= cuts[0].threshold
        up |= kept & (value > 0)
        down |= kept & (value < 0)
    return [(up & down).float(), torch.ones_like(values[0])]


def conflicts(layers: Mapping[int, Sums]) -> dict[int, float]:
    """Return the share of each layer's entries that two experts pull apart."""
    return {
        layer: sums.absolute[0] / sums.absolute[1] if sums.absolute[1] else 0.0
        for layer, sums in layers.items()
        if layer != OUTSIDE
    }


def is_routed(layer: int | None, found: tuple[Answer, ...], threshold: float | None) -> bool:
    """Return whether the experts conflict too much in a layer to be averaged."""
    known = conflicts(found[1] or {}) if found else {}
    if layer not in known:
        return False
    limit = statistics.median(known.values()) if threshold is None else threshold
    return known[layer] > limit


def manifest(params: Mapping[str, Any], found: tuple[Answer, ...]) -> dict[str, Any]:
    """Return what has become of each layer, for the merge report."""
    return {
        str(layer): {
            "conflict": round(conflict, 6),
            "is": "routed" if is_routed(layer, found, params["threshold"]) else "merged",
        }
        for layer, conflict in sorted(conflicts(found[1] or {}).items())
    }


def check(params: Mapping[str, Any]) -> list[str]:
    """Weights that sum to zero have no average."""
    return negligible(params.get("weights") or [])


def _vector(expect: list[float], source: str, **params: Any) -> Vector:
    given = {"keep": "b", "density": 1.0, **params}
    return Vector(TAUS, expect, given, layer=3, layers=4, source=source)


@combine(
    title="Layer split by conflict",
    paper="Lai et al. 2025, arXiv 2502.04411 (the split of Mediator)",
    experts=(2, None),
    reads_all=True,
    check=check,
    reports=manifest,
    needs=(
        Order(ranks, whole=True, each=True, depends=("density",)),
        Totals(
            whole=True,
            absolute=True,
            by_layer=True,
            derived=opposed,
            depends=("density",),
            of_zeros=(0.0, 1.0),
        ),
    ),
    vectors=[
        _vector([1.5, -4, 1.5, 0], "a single layer has the median conflict: an average"),
        _vector([-1, -5, 2, -0.5], "two of four entries conflict: above 0.4", threshold=0.4),
        _vector([1.5, -4, 1.5, 0], "not above 0.5", threshold=0.5),
        _vector([0, 0, 0, 0], "conflicts are left to the base", threshold=0.4, keep="base"),
        _vector(
            [1.5, -4, 1.5, 0],
            "the two largest entries of each: 4 and -3; -5 and 2: none conflict",
            threshold=0.0,
            density=0.5,
        ),
        Vector(TAUS, [1.5, -4, 1.5, 0], {"keep": "b"}, source="outside the layers: an average"),
    ],
)
def mediator_split(
    inputs: Sequence[Tensor],
    *,
    place: Place,
    weights: Sequence[float],
    names: Sequence[str],
    found: tuple[Answer, ...],
    keep: Annotated[ExpertName, Doc("expert whose layers are kept where the experts conflict")],
    density: Annotated[
        float, Range(above=0, at_most=1), Doc("share of each expert's entries that may conflict")
    ] = 0.2,
    threshold: Annotated[
        float | None,
        Range(at_least=0, at_most=1),
        Doc("share of conflicting entries up to which a layer is averaged; null: the median"),
    ] = None,
) -> Tensor:
    """Average the layers in which the experts conflict little; keep one expert's in the others.

    A layer's conflict is the share of its entries that two experts pull in opposite directions,
    each with one of the largest entries of its task vector (`density`, over the whole model).
    Layers with more than the threshold are meant to be routed between experts at run time; here
    they are the expert's that `keep` names. `merge_report.json` says which layers those are. All
    that is in no layer is averaged.

    `keep: base` leaves those layers as they are in the base.

    Order of operations: an average is (w0*x0 + w1*x1 + ...) / (w0 + w1 + ...) in fp32, in order.
    """
    import torch

    if is_routed(place.layer, found, threshold):
        if keep == "base":
            return torch.zeros_like(inputs[0], dtype=torch.float32)
        return inputs[list(names).index(keep)].float()
    return divide(weighted_sum(inputs, weights), total_weight(weights))
