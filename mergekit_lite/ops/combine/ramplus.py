"""Like `ram`, with what a single expert changed scaled up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._place import Place, Sums
from mergekit_lite.ops._spec import Doc, Range, Vector, combine
from mergekit_lite.ops._statistics import Totals

if TYPE_CHECKING:
    from torch import Tensor

TAUS = [[4, 0, 1, 0], [2, 0, 0, 3], [2, 5, 1, 0]]


def active_entries(values: Sequence[Tensor], epsilon: float) -> tuple[list[Tensor], Tensor]:
    """Return which entries each expert changes, and how many experts change each."""
    active = [value.abs() > single(epsilon) for value in values]
    counts = active[0].float()
    for one in active[1:]:
        counts = counts + one
    return active, counts


def shared_and_unique(
    values: Sequence[Tensor], place: Place, params: Mapping[str, Any]
) -> list[Tensor]:
    """Mark, for each expert, the entries that it shares and then those that it alone changes."""
    active, counts = active_entries(values, params["epsilon"])
    shared = [(one & (counts > 1)).float() for one in active]
    return shared + [(one & (counts == 1)).float() for one in active]


def factors(sums: Sums | None, experts: int, r: float, alpha: float) -> list[float]:
    """Return what the entries that an expert alone has changed are multiplied by."""
    counts = sums.absolute if sums else (0.0,) * (2 * experts)
    pairs = zip(counts[:experts], counts[experts:], strict=True)
    return [single(1.0 + r * min(shared / max(alone, 1.0), alpha)) for shared, alone in pairs]


@combine(
    title="RAM+: reinforced agent merging with rescaling",
    paper="Yuan et al. 2026, arXiv 2601.13572",
    commutative=True,
    needs=Totals(scope="scope", absolute=True, inputs=shared_and_unique, depends=("epsilon",)),
    compat={"mergekit": {"scope": "tensor"}},
    vectors=[
        Vector(
            TAUS,
            [8 / 3, 5 * 1.2, 1, 3 * 1.1],
            {"r": 0.1, "alpha": 2.0},
            source="the second has 1 shared entry and 1 of its own, the third 2 and 1, by hand",
        ),
        Vector(TAUS, [8 / 3, 5.1, 1, 3.06], source="ratios are cut at 0.2: a factor of 1.02"),
        Vector([[1, 4], [2, 2]], [1.5, 3], {"scope": "tensor"}, source="all shared: a mean"),
    ],
)
def ramplus(
    inputs: Sequence[Tensor],
    *,
    sums: Sums | None,
    epsilon: Annotated[
        float, Range(at_least=0), Doc("a change of at most this magnitude counts as none")
    ] = 1e-5,
    r: Annotated[float, Range(at_least=0), Doc("how strongly unique changes are scaled up")] = 0.1,
    alpha: Annotated[
        float, Range(at_least=0), Doc("largest ratio of shared to unique changes that counts")
    ] = 0.2,
    scope: Annotated[
        Literal["model", "tensor"], Doc("count over the whole model (the paper) or each tensor")
    ] = "model",
) -> Tensor:
    """Average what several experts have changed, and scale up what one alone has changed.

    The more of an expert's changes are shared, and so diluted by the mean, the more its own ones
    are scaled up: by 1 + r * min(shared/unique, alpha), with the counts of its entries. An expert
    without entries of its own has nothing to scale.

    Order of operations: all in fp32. Expert i is active where |x_i| > epsilon; n = how many are.
    f_i = float32(1 + r * min(shared_i/max(unique_i, 1), alpha)), in fp64. num = 0; num = num +
    (x_i * f_i where n = 1, else x_i) over active i, in order; num / max(n, 1).
    """
    import torch

    active, counts = active_entries(inputs, epsilon)
    total = torch.zeros_like(counts)
    scales = factors(sums, len(inputs), r, alpha)
    for tensor, mine, scale in zip(inputs, active, scales, strict=True):
        value = torch.where(counts == 1, tensor * scale, tensor)
        total = total + torch.where(mine, value, 0.0)
    return total / counts.clamp(min=1.0)
