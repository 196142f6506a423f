"""RegMean: each linear layer as the regression that fits all experts' outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mergekit_lite.ops._calibration import Wanted
from mergekit_lite.ops._least_squares import solve_right
from mergekit_lite.ops._place import Place
from mergekit_lite.ops._spec import Doc, Range, StandIn, Vector, combine
from mergekit_lite.ops._spectral import Embeddings, is_treated
from mergekit_lite.ops.combine.task_arithmetic import task_arithmetic

if TYPE_CHECKING:
    from torch import Tensor


_UNSEEN = 1e-6
"""Eigenvalues of fp32 Grams below this part of the largest are rounding: nothing was seen there."""


def check(params: Mapping[str, Any]) -> list[str]:
    """A weight multiplies a Gram matrix, so it cannot be negative, nor all of them zero."""
    weights = params.get("weights")
    if not isinstance(weights, Sequence) or (min(weights) >= 0 and max(weights) > 0):
        return []
    return ["weights must not be negative, and not all 0: they multiply Gram matrices"]


def mean(inputs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the mean of the deltas by the experts' weights."""
    return task_arithmetic(inputs, weights=weights, normalize=True)


def without(params: Mapping[str, Any], inputs: int) -> StandIn:
    """Take the mean where there is no statistic."""
    return "task_arithmetic", {"normalize": True}


def instead(
    params: Mapping[str, Any], shape: Sequence[int], role: str, inputs: int
) -> StandIn | None:
    """Take the mean of what is neither a matrix nor a gain."""
    other = len(shape) != 1 and not is_treated(params, shape, role)
    return without(params, inputs) if other else None


def statistic(params: Mapping[str, Any], shape: Sequence[int]) -> Wanted:
    """Want the Gram of a matrix's inputs; of a gain the mean squares of what it multiplies."""
    if len(shape) == 1:
        return Wanted(tuple(shape), optional=True)
    side = shape[0] if params.get("input") == "first" else shape[-1]
    return Wanted((side, side))


def workspace(params: Mapping[str, Any], shape: Sequence[int], inputs: int) -> int:
    """Return the bytes of the Grams, of their sum, its factor, and of matrices in fp64."""
    if len(shape) != 2:
        return 0
    side = statistic(params, shape).shape[0]
    return (4 * inputs + 40) * side * side + 24 * shape[0] * shape[1]


def work(params: Mapping[str, Any], shape: Sequence[int], inputs: int) -> float:
    """Return the operations of the products with the Grams and of the solution."""
    if len(shape) != 2:
        return 0.0
    side = statistic(params, shape).shape[0]
    solving = 10.0 if params.get("solver") == "pinv" else 1.0
    return solving * side**3 + 2.0 * (inputs + 1) * side * shape[0] * shape[1]


def gains(inputs: Sequence[Tensor], weights: Sequence[float], energy: Sequence[Tensor]) -> Tensor:
    """Return the mean of gains, each dimension by the experts' energies there."""
    top = inputs[0].double() * 0
    bottom = top.clone()
    for delta, weight, each in zip(inputs, weights, energy, strict=True):
        top += each.double() * weight * delta
        bottom += each.double() * weight
    known = bottom != 0
    return (top / bottom.where(known, bottom + 1)).float().where(known, mean(inputs, weights))


def regression(
    matrices: Sequence[Tensor],
    weights: Sequence[float],
    grams: Sequence[Tensor],
    offdiag: float,
    ridge: float,
) -> Tensor:
    """Return the matrix that fits all experts' outputs best, in fp64; inputs are columns.

    A `ridge` above 0 pulls it towards the mean; 0 takes the pseudo-inverse.
    """
    import torch

    total = torch.zeros_like(grams[0], dtype=torch.float64)
    numerator = torch.zeros_like(matrices[0], dtype=torch.float64)
    for matrix, weight, gram in zip(matrices, weights, grams, strict=True):
        own = gram.double()
        own = (own + own.T) * (weight / 2)
        diagonal = own.diagonal().clone()
        own *= offdiag
        own.diagonal().copy_(diagonal)
        total += own
        numerator += matrix.double() @ own
    if ridge:
        damping = ridge * float(total.diagonal().mean())
        numerator += mean(matrices, weights).double() * damping
        if damping == 0:
            return mean(matrices, weights).double()
        return solve_right(numerator, total, damping)
    return solve_right(numerator, total, 0.0, unseen=_UNSEEN)


_FILES = {"a": "math.safetensors", "b": "code.safetensors"}
_TAUS = [[[4, 2], [0, 0]], [[0, 0], [4, 2]]]


@combine(
    title="RegMean",
    paper="Jin et al. 2023, arXiv 2212.09849",
    reach="tensor",
    commutative=True,
    calibration=True,
    check=check,
    instead=instead,
    statistic=statistic,
    without=without,
    workspace=workspace,
    work=work,
    vectors=[
        Vector(
            _TAUS,
            [[3, 1], [1, 1]],
            {"file": _FILES},
            calibration=[[[3, 0], [0, 1]], [[1, 0], [0, 1]]],
            source="inputs that do not mix: means by 3 to 1 and 1 to 1, by hand",
        ),
        Vector(
            _TAUS,
            [[3, 0], [1, 0]],
            {"solver": "pinv"},
            calibration=[[[3, 0], [0, 0]], [[1, 0], [0, 0]]],
            source="pinv: an input never seen stays as in the base, by hand",
        ),
        Vector(
            _TAUS,
            [[3, 1], [1, 1]],
            {"solver": "ridge"},
            calibration=[[[3, 0], [0, 0]], [[1, 0], [0, 0]]],
            source="ridge: an input never seen takes the mean, by hand",
        ),
        Vector(
            [[[2, 0], [0, 0]], [[0, 2], [0, 0]]],
            [[0.75, 1.25], [0, 0]],
            {"offdiag": 0.5},
            calibration=[[[2, 1], [1, 2]], [[2, -1], [-1, 2]]],
            source="off-diagonals halved cancel in the sum 4 I: [4, 1] + [-1, 4] over 4, by hand",
        ),
        Vector(
            [[4, 2], [0, 2]],
            [3, 2],
            calibration=[[3, 0], [1, 0]],
            source="a gain: mean by the squares of its inputs, by hand",
        ),
    ],
)
def regmean(
    inputs: Sequence[Tensor],
    *,
    place: Place,
    weights: Sequence[float],
    calibration: Sequence[Tensor],
    base: Tensor | None,
    file: Annotated[str, Doc("statistic file of the expert"), "per_expert"],
    target: Annotated[
        Literal["weight", "delta"],
        Doc("with `pinv`: what becomes zero where no input was seen, the weight or its change"),
    ] = "weight",
    solver: Annotated[
        Literal["diag_mix", "ridge", "pinv"],
        Doc("weaken off-diagonals, damp towards the mean, or take the pseudo-inverse"),
    ] = "diag_mix",
    offdiag: Annotated[
        float,
        Range(at_least=0, at_most=1),
        Doc("`diag_mix`: what off-diagonals are multiplied by; 0.9, or 0.1 for T5 and DeBERTa"),
    ] = 0.9,
    ridge: Annotated[
        float,
        Range(above=0),
        Doc("`diag_mix` and `ridge`: pull towards the mean, over the mean of the diagonal"),
    ] = 1e-6,
    input: Annotated[
        Literal["last", "first"],
        Doc("dimension of the weight that meets the input: `first` in GPT-2"),
    ] = "last",
    embeddings: Embeddings = False,
) -> Tensor:
    """Merge each linear layer so that it answers each expert's inputs as that expert does.

    Data: one safetensors file an expert, with a tensor named like each weight: the Gram matrix
    X^T X / n of the n inputs that reach the layer (inputs x inputs, any float dtype; padding left
    out). For a norm's gain it may hold the mean square of every input. Weights without one, and
    embeddings and head, get the plain mean; `plan` names them.

    Solves (sum G) W^T = sum G W^T over experts, with G the Gram times the expert's weight. With
    `diag_mix` (the authors') off-diagonals are multiplied by `offdiag` first. A small pull towards
    the mean keeps inputs that no expert saw from being divided by zero: equal experts give
    themselves back, one expert alone itself. `pinv` takes eigenvalues below 1e-6 of the largest as
    inputs that nobody saw; with `target: delta` it is `lot`.

    Order of operations: sums, products and one Cholesky factorisation (or eigenvectors, `pinv`) in
    fp64 in the order of the experts, on changes to the base; one rounding to fp32.
    """
    shape = tuple(inputs[0].shape)
    if len(shape) == 1:
        return gains(inputs, weights, calibration)
    if not is_treated({"embeddings": embeddings}, shape, place.role):
        return mean(inputs, weights)
    lift = base if solver == "pinv" and target == "weight" else None
    matrices = [delta if lift is None else delta + lift for delta in inputs]
    if input == "first":
        matrices = [matrix.T for matrix in matrices]
    mixed = offdiag if solver == "diag_mix" else 1.0
    result = regression(matrices, weights, calibration, mixed, 0.0 if solver == "pinv" else ridge)
    turned = result.T if input == "first" else result
    return (turned if lift is None else turned - lift).float().contiguous()
