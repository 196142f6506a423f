"""WUDI: the merged matrix that disturbs each task least where the task itself is active."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from mergekit_lite.ops._least_squares import solve_right
from mergekit_lite.ops._place import Place
from mergekit_lite.ops._spec import Doc, Range, Vector, combine
from mergekit_lite.ops._spectral import (
    Embeddings,
    FlattenConv,
    gram,
    is_treated,
    matrix_shape,
    mean,
    mean_instead,
    mirrored,
    nonzero,
    on_matrices,
)

if TYPE_CHECKING:
    from torch import Tensor

_DECAYS = (0.9, 0.999)


def workspace(params: Mapping[str, Any], shape: Sequence[int], inputs: int) -> int:
    """Return the bytes of the stacked tasks, their Gram matrix, and of the optimiser."""
    size = matrix_shape(shape, bool(params.get("flatten_conv")))
    if size is None:
        return 0
    rows, columns = size
    side = min(inputs * rows, columns)
    copies = inputs + (3 if params.get("closed_form") else 5)
    stack = 8 * inputs * rows * (rows + columns)
    return 4 * copies * rows * columns + 64 * side * side + 16 * rows * max(side, columns) + stack


def work(params: Mapping[str, Any], shape: Sequence[int], inputs: int) -> float:
    """Return the operations of the Grams and of the solution, or of the steps."""
    size = matrix_shape(shape, bool(params.get("flatten_conv")))
    if size is None:
        return 0.0
    rows, columns = size
    side = min(inputs * rows, columns)
    found = 2.0 * side * side * max(inputs * rows, columns) + 2.0 * inputs * rows * rows * columns
    if params.get("closed_form"):
        return found + side**3 + 4.0 * rows * side * columns
    return found + float(params.get("iters", 0)) * 2.0 * rows * columns * min(columns, 2 * side)


def stacked(tasks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return X, the tasks over one another with norm 1 each, and B, with B X = sum of t t^T t / n.

    Shapes: X is (tasks * rows) x columns in fp32, B is rows x (tasks * rows) in fp64.
    """
    import torch

    norms = [float(task.double().norm()) for task in tasks]
    unit = torch.cat([task / norm for task, norm in zip(tasks, norms, strict=True)])
    own = [mirrored(gram(task)) / norm for task, norm in zip(tasks, norms, strict=True)]
    return unit, torch.cat(own, 1)


def minimiser(tasks: Sequence[Tensor], ridge: float) -> Tensor:
    """Return the minimum itself, from a Gram matrix of the shorter side of the stacked tasks."""
    unit, weights = stacked(tasks)
    rows, columns = unit.shape
    damping = ridge * len(tasks) / min(rows, columns)
    if rows < columns:
        return (solve_right(weights, gram(unit), damping) @ unit.double()).float()
    return solve_right(weights @ unit.double(), gram(unit.T), damping).float()


def descended(tasks: Sequence[Tensor], iters: int, lr_rel: float) -> Tensor:
    """Return where Adam is after `iters` steps from the sum, in units of the tasks' rms."""
    import torch

    unit, weights = stacked(tasks)
    target = (weights @ unit.double()).float()
    rows, columns = unit.shape
    inner = mirrored(gram(unit.T)).float() if columns <= rows else None
    merged = torch.stack([task.double() for task in tasks]).sum(0).float()
    first, second = torch.zeros_like(merged), torch.zeros_like(merged)
    for step in range(1, iters + 1):
        pulled = merged @ inner if inner is not None else (merged @ unit.T) @ unit
        slope = 2 * (pulled - target)
        first.lerp_(slope, 1 - _DECAYS[0])
        second.mul_(_DECAYS[1]).addcmul_(slope, slope, value=1 - _DECAYS[1])
        scale = (second / (1 - _DECAYS[1] ** step)).sqrt_().add_(1e-8)
        merged.addcdiv_(first, scale, value=-lr_rel / (1 - _DECAYS[0] ** step))
    return merged


@combine(
    title="WUDI-Merging",
    paper="Cheng et al. 2025, arXiv 2503.08099",
    reach="tensor",
    commutative=True,
    instead=mean_instead,
    workspace=workspace,
    work=work,
    vectors=[
        Vector(
            [[[2, 0], [0, 0]], [[0, 0], [0, 5]]],
            [[2, 0], [0, 5]],
            {"closed_form": True},
            source="tasks with inputs of their own disturb nothing: the sum, by hand",
        ),
        Vector(
            [[[1, 0], [0, 0]], [[3, 0], [0, 0]]],
            [[2, 0], [0, 0]],
            {"closed_form": True, "ridge": 0.0},
            source="tasks on one input: their mean, by hand",
        ),
        Vector(
            [[[2, 0], [0, 0]], [[0, 0], [0, 5]]],
            [[2, 0], [0, 5]],
            source="the sum is the minimum already, by hand",
        ),
        Vector(
            [[[1, 0], [0, 1]], [[1, 0], [0, 1]]],
            [[1.9, 0], [0, 1.9]],
            {"iters": 1, "lr_rel": 0.1414213562373095},
            source="one step of Adam is lr times the sign: 2 - 0.1414 times rms 0.7071, by hand",
        ),
        Vector([[1, 2], [3, -2]], [2, 0], source="not a matrix: the mean"),
    ],
)
def wudi(
    inputs: Sequence[Tensor],
    *,
    place: Place,
    weights: Sequence[float],
    closed_form: Annotated[
        bool, Doc("take the minimum itself, rather than some steps towards it")
    ] = False,
    iters: Annotated[int, Range(at_least=0), Doc("steps of Adam")] = 300,
    lr_rel: Annotated[
        float,
        Range(above=0),
        Doc("learning rate over the root mean square of the task vectors; try 0.01 to 0.1"),
    ] = 0.03,
    ridge: Annotated[
        float,
        Range(at_least=0),
        Doc("closed form: damping, over the mean eigenvalue; 0 is the pseudo-inverse"),
    ] = 1e-6,
    embeddings: Embeddings = False,
    flatten_conv: FlattenConv = False,
) -> Tensor:
    """Find the matrix that changes each task's output least on the inputs that the task lives on.

    Minimises the sum over task vectors t (each times its weight) of |(M - t) t^T|^2 / |t|^2, since
    the rows of t span the inputs that it was trained on. Starts from the sum of all t and takes
    `iters` steps of Adam; stopping early is part of the method. The authors' learning rate of 1e-5
    is absolute, so that its strength depends on how far the experts were trained; here it is
    relative to the root mean square of the task vectors. `closed_form` solves for the minimum.
    Experts that leave the tensor alone are no tasks.

    On a CPU the steps are slow: each is a product of the matrix with a square one of its inputs.

    Tensors that are no matrices, and embeddings and head, get the mean of the weighted task vectors
    (the authors leave them as in the base).

    Order of operations: Grams in fp64; gradient and Adam (decays 0.9 and 0.999, epsilon 1e-8) in
    fp32 on task vectors divided by their root mean square; closed form by Cholesky in fp64.
    """
    shape = tuple(inputs[0].shape)
    treated = {"embeddings": embeddings, "flatten_conv": flatten_conv}
    if not is_treated(treated, shape, place.role):
        return mean(inputs, weights)

    def merge(matrices: list[Tensor]) -> Tensor:
        tasks = nonzero(matrices)
        if closed_form:
            return minimiser(tasks, ridge)
        squares = sum(float(task.double().square().mean()) for task in tasks)
        rms = math.sqrt(squares / len(tasks))
        return descended([task / rms for task in tasks], iters, lr_rel) * rms

    return on_matrices(inputs, weights, merge)
