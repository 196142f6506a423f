"""Singular values of task vectors: the factorisations that the matrix methods share.

A thin decomposition comes from the Gram matrix of the shorter side and its eigenvectors, both in
fp64. That squares the condition number, but 1e-16 squared from fp64 is finer than what fp32 inputs
carry: directions down to 1e-5 of the largest are as exact as those of an SVD in fp32, at a fraction
of its time. A matrix of low rank, as an adapter's delta is, is recognised by a random probe and
factored through its range. Signs of singular vectors never reach a result.

Nothing here draws a random number that is not fixed by the tensor's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import frexp, isfinite, prod
from typing import TYPE_CHECKING, Annotated, Any

from mergekit_lite.ops._place import Place, random_key
from mergekit_lite.ops._spec import Doc, StandIn
from mergekit_lite.ops.combine.task_arithmetic import task_arithmetic

if TYPE_CHECKING:
    from torch import Tensor

TAIL = 1e-5
"""Singular values below this part of the largest count as zero: their vectors are arbitrary."""
COLUMNS = 4096
"""Columns that are in fp64 at a time; sums over columns are in blocks of so many."""
_PROBES = 256
_OVERSAMPLED = 16
_POWERS = 12
_SETTLED = 1e-6

Work = Callable[[Mapping[str, Any], Sequence[int], int], float]
"""The floating-point operations of an op, by its parameters, the shape and its inputs."""

Embeddings = Annotated[
    bool, Doc("treat embeddings and the head as matrices too; else they get the mean")
]
FlattenConv = Annotated[
    bool, Doc("treat convolutions as matrices of one row an output channel; else the mean")
]


def matrix_shape(shape: Sequence[int], flatten_conv: bool) -> tuple[int, int] | None:
    """Return rows and columns of a tensor as a matrix; None if it is none, or a single line."""
    if len(shape) < 2 or (len(shape) > 2 and not flatten_conv):
        return None
    rows, columns = shape[0], prod(shape[1:])
    return (rows, columns) if min(rows, columns) > 1 else None


def is_treated(params: Mapping[str, Any], shape: Sequence[int], role: str) -> bool:
    """Return whether a matrix method applies to a tensor of this shape and role."""
    if role in ("embedding", "head") and not params.get("embeddings"):
        return False
    return matrix_shape(shape, bool(params.get("flatten_conv"))) is not None


def mean_instead(
    params: Mapping[str, Any], shape: Sequence[int], role: str, inputs: int
) -> StandIn | None:
    """Return the mean as a sum that runs tile by tile, for tensors without singular values."""
    if is_treated(params, shape, role):
        return None
    return "task_arithmetic", {"lambda": params.get("alpha", 1.0) / inputs, "normalize": False}


def mean(inputs: Sequence[Tensor], weights: Sequence[float], alpha: float = 1.0) -> Tensor:
    """Return alpha times the mean of the weighted deltas, bit for bit as `mean_instead` gives."""
    return task_arithmetic(inputs, weights=weights, lambda_=alpha / len(inputs))


def workspace(params: Mapping[str, Any], shape: Sequence[int], inputs: int) -> int:
    """Return the bytes of factors, Grams and eigenvectors that a matrix method holds at once."""
    size = matrix_shape(shape, bool(params.get("flatten_conv")))
    if size is None:
        return 0
    short, long = min(size), max(size)
    return 64 * short * short + 16 * short * long + 16 * short * min(COLUMNS, long)


def factorising(each: int, more: int = 0) -> Work:
    """Return the `work` of a method with `each` factorisations an expert, and `more` beside."""

    def work(params: Mapping[str, Any], shape: Sequence[int], inputs: int) -> float:
        size = matrix_shape(shape, bool(params.get("flatten_conv")))
        if size is None:
            return 0.0
        short, long = min(size), max(size)
        return float(each * inputs + more) * short * short * (3.0 * long + 7.0 * short)

    return work


def on_matrices(
    inputs: Sequence[Tensor],
    weights: Sequence[float],
    method: Callable[[list[Tensor]], Tensor],
) -> Tensor:
    """Return what a method makes of the weighted deltas as matrices, in the tensor's shape.

    Deltas of extreme size are brought near 1 by a power of two first, and back afterwards, so
    that squares neither vanish nor overflow: the method must scale with its inputs. Deltas that
    are not finite give a result of NaN.
    """
    import torch

    largest = max(abs(w) * float(x.abs().max()) for x, w in zip(inputs, weights, strict=True))
    if not isfinite(largest):
        return torch.full_like(inputs[0], float("nan"))
    if largest == 0:
        return torch.zeros_like(inputs[0])
    power = frexp(largest)[1]
    power = power if abs(power) > 40 else 0
    matrices = [
        _times(x.reshape(x.shape[0], -1), w, -power) for x, w in zip(inputs, weights, strict=True)
    ]
    return _times(method(matrices), 1.0, power).reshape(inputs[0].shape)


def _times(matrix: Tensor, weight: float, power: int) -> Tensor:
    if weight != 1.0:
        matrix = matrix * weight
    if power:
        # In fp64, because 2^power alone may be out of the range of fp32.
        matrix = (matrix.double() * 2.0**power).float()
    return matrix


def nonzero(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return the matrices that change anything: an expert that does not is no task."""
    return [matrix for matrix in matrices if bool(matrix.any())]


@dataclass(frozen=True)
class Factors:
    """A matrix as `left @ diag(sizes) @ right.T`, largest singular value first.

    Attributes:
        left, right: orthonormal columns, fp32; one column for each size.
        sizes: singular values above the tail, fp64.
    """

    left: Tensor
    sizes: Tensor
    right: Tensor

    def top(self, count: int) -> Factors:
        """Return the `count` largest components."""
        return Factors(self.left[:, :count], self.sizes[:count], self.right[:, :count])

    @property
    def flipped(self) -> Factors:
        return Factors(self.right, self.sizes, self.left)

    def product(self) -> Tensor:
        """Return the matrix in fp32."""
        return (self.left * self.sizes.float()) @ self.right.T


def _blocks(columns: int) -> Iterator[slice]:
    for start in range(0, columns, COLUMNS):
        yield slice(start, start + COLUMNS)


def gram(matrix: Tensor, total: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Return the lower triangle of `matrix @ matrix.T` in fp64; what is above it is undefined.

    Args:
        total: added to, in place, where it is given.
        scale: multiplies what is added.
    """
    import torch

    rows = matrix.shape[0]
    if total is None:
        total = torch.zeros(rows, rows, dtype=torch.float64, device=matrix.device)
    step = -(-rows // 4) if rows >= 512 else max(rows, 1)
    for block in _blocks(matrix.shape[1]):
        part = matrix[:, block].double()
        for first in range(0, rows, step):
            last = first + step
            product = part[first:last] @ part[:last].T
            total[first:last, :last] += product * scale if scale != 1.0 else product
    return total


def mirrored(lower: Tensor) -> Tensor:
    """Return the symmetric matrix of which `lower` is the lower triangle."""
    return lower.tril() + lower.tril(-1).T


def _spectrum(lower: Tensor) -> tuple[Tensor, Tensor]:
    """Return singular values and vectors, largest first, from the lower half of a Gram matrix."""
    import torch

    values, vectors = torch.linalg.eigh(lower)
    return values.clamp(min=0).sqrt().flip(0), vectors.flip(1)


def _opposite(matrix: Tensor, left: Tensor, sizes: Tensor) -> Tensor:
    """Return the right singular vectors in fp32, from the left ones in fp64."""
    import torch

    scaled = left / sizes
    parts = [(matrix[:, b].double().T @ scaled).float() for b in _blocks(matrix.shape[1])]
    return torch.cat(parts)


def thin_svd(
    matrix: Tensor, place: Place, *, most: int | None = None, tail: float = TAIL
) -> Factors:
    """Return the singular components above `tail` times the largest, at most `most` of them.

    Args:
        matrix: fp32, rows x columns.
        place: whose name fixes the probe.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return thin_svd(matrix.T, place, most=most, tail=tail).flipped
    found = _low_rank(matrix, place)
    if found is not None:
        return found.top(min(above(found.sizes, tail), most or matrix.shape[0]))
    sizes, vectors = _spectrum(gram(matrix))
    count = min(above(sizes, tail), most or matrix.shape[0])
    left, sizes = vectors[:, :count], sizes[:count]
    return Factors(left.float(), sizes, _opposite(matrix, left, sizes))


def left_vectors(matrix: Tensor, place: Place) -> Tensor:
    """Return the left singular vectors of `thin_svd`, without the cost of the right ones."""
    if matrix.shape[0] > matrix.shape[1]:
        return thin_svd(matrix, place).left
    found = _low_rank(matrix, place)
    if found is not None:
        return found.left[:, : above(found.sizes, TAIL)]
    sizes, vectors = _spectrum(gram(matrix))
    return vectors[:, : above(sizes, TAIL)].float()


def above(sizes: Tensor, tail: float) -> int:
    """Return how many singular values, largest first, are above the tail."""
    return int((sizes > tail * sizes[0]).sum()) if sizes.numel() else 0


def _gaussian(rows: int, columns: int, place: Place, like: Tensor) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(random_key(0, "probe", "", place.name) >> 1)
    return torch.randn(rows, columns, generator=generator).to(like.device)


def _low_rank(matrix: Tensor, place: Place) -> Factors | None:
    """Return all components of a matrix of low rank, None if its rank may be high.

    What is left out is below half of `TAIL` times the largest component, in the Frobenius norm.
    """
    import torch

    width = min(_PROBES, matrix.shape[0] // 4)
    if width < 16:
        return None
    image = matrix @ _gaussian(matrix.shape[1], width, place, matrix)
    basis, found, _ = torch.linalg.svd(image.double(), full_matrices=False)
    count = above(found, 2e-6)
    if count == 0 or count > width * 3 // 4:
        return None
    basis = basis[:, :count]
    inside = torch.cat([basis.T @ matrix[:, b].double() for b in _blocks(matrix.shape[1])], 1)
    sizes, vectors = _spectrum(inside @ inside.T)
    parts = [matrix[:, b].double().square().sum() for b in _blocks(matrix.shape[1])]
    outside = float(torch.stack(parts).sum() - inside.square().sum())
    if outside > (TAIL / 2 * float(sizes[0])) ** 2:
        return None
    count = above(sizes, TAIL / 2)
    vectors, sizes = vectors[:, :count], sizes[:count]
    left, right = basis @ vectors, inside.T @ (vectors / sizes)
    return Factors(left.float(), sizes, right.float())


def top_svd(matrix: Tensor, count: int, place: Place) -> Factors:
    """Return the `count` largest components, by random subspace iteration where they are few.

    Up to an eighth of all components, the subspace is multiplied by the matrix until the energy
    it captures settles to one part in a million. More components, or an energy that does not
    settle, take the thin decomposition.
    """
    import torch

    short = min(matrix.shape)
    if count > short // 8:
        return thin_svd(matrix, place, most=count)
    width = min(short, count + _OVERSAMPLED + count // 2)
    basis = matrix @ _gaussian(matrix.shape[1], width, place, matrix)
    energy = 0.0
    for _ in range(_POWERS):
        basis = torch.linalg.qr(basis.double())[0].float()
        inside = basis.T @ matrix
        sizes, vectors = _spectrum(gram(inside))
        before, energy = energy, float(sizes[:count].square().sum())
        if energy - before <= _SETTLED * energy:
            break
        basis = matrix @ inside.T
    else:
        return thin_svd(matrix, place, most=count)
    kept = min(count, above(sizes, TAIL))
    vectors, sizes = vectors[:, :kept], sizes[:kept]
    right = inside.double().T @ (vectors / sizes)
    return Factors((basis.double() @ vectors).float(), sizes, right.float())


def isometry(matrix: Tensor, place: Place, tail: float = TAIL) -> tuple[Tensor, Tensor]:
    """Return the matrix with all singular values above the tail set to 1, and those values.

    It is the polar factor, restricted to directions that the matrix does have: where it is of low
    rank, the polar factor of textbooks fills the null space with arbitrary directions.
    """
    import torch

    if matrix.shape[0] > matrix.shape[1]:
        flat, sizes = isometry(matrix.T, place, tail)
        return flat.T, sizes
    found = _low_rank(matrix, place)
    if found is not None:
        found = found.top(above(found.sizes, tail))
        return found.left @ found.right.T, found.sizes
    sizes, vectors = _spectrum(gram(matrix))
    count = above(sizes, tail)
    vectors, sizes = vectors[:, :count], sizes[:count]
    root = (vectors / sizes) @ vectors.T
    return torch.cat(
        [(root @ matrix[:, b].double()).float() for b in _blocks(matrix.shape[1])], 1
    ), sizes


def joined(parts: Sequence[Factors], sizes: Tensor) -> Tensor:
    """Return the matrix with the components of several, made orthonormal on both sides.

    The bases, side by side, are replaced by the nearest orthonormal ones (their polar factors).
    Directions that several bases share are shared between them, not made up anew.

    Args:
        sizes: singular values of all components, in the order of the parts.
    """
    import torch

    left = torch.cat([part.left for part in parts], 1)
    right = torch.cat([part.right for part in parts], 1)
    core = (_inverse_root(left) * sizes.double()) @ _inverse_root(right)
    wide = left.double() @ core
    rows = [(wide @ right[b].double().T).float() for b in _blocks(right.shape[0])]
    return torch.cat(rows, 1)


def _inverse_root(basis: Tensor) -> Tensor:
    """Return the inverse square root of `basis.T @ basis`, zero on its null space, in fp64."""
    sizes, vectors = _spectrum(gram(basis.T))
    count = above(sizes, TAIL)
    vectors = vectors[:, :count]
    return (vectors / sizes[:count]) @ vectors.T
