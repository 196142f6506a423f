"""UpIT's expert expansion: children of the least alike experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Annotated

from mergekit_lite.ops._annotations import Chance
from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._place import Place, Sums, random_key
from mergekit_lite.ops._random import kept, uniforms
from mergekit_lite.ops._spec import Doc, Range, Vector, combine
from mergekit_lite.ops._sphere import Matrix, cosines
from mergekit_lite.ops._statistics import Totals

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Birth:
    """Whose child an expert is.

    Attributes:
        parents: their numbers; children are counted behind the experts that are there.
        share: part that the first one has in it.
    """

    parents: tuple[int, int]
    share: float


def births(gram: Matrix, children: int, density: float, lots: int) -> list[Birth]:
    """Return the children of experts, of which each pair has one at most.

    Each time the pair whose task vectors have the lowest cosine, the first of several. What a
    child's inner products with the others will be follows from its parents': dropping entries
    leaves them as they are in the mean, and makes its own square larger by 1 / density.

    Args:
        gram: inner products of the experts' task vectors.
        children: how many there are.
        density: part of a parent's entries that a child gets.
        lots: random number; parts are drawn by it and the child's number.
    """
    table, found = [list(row) for row in gram], list[Birth]()
    key = random_key(lots, "upit", "", "share")
    for number in range(children):
        taken, near = {birth.parents for birth in found}, cosines(table)
        pairs = [pair for pair in combinations(range(len(table)), 2) if pair not in taken]
        a, b = min(pairs, key=lambda pair: near[pair[0]][pair[1]])
        share = single(float(uniforms(number, 1, key)[0]))
        other = 1.0 - share
        row = [share * table[a][k] + other * table[b][k] for k in range(len(table))]
        own = (share**2 * table[a][a] + other**2 * table[b][b]) / density
        table = [[*one, new] for one, new in zip(table, row, strict=True)]
        table.append([*row, own + 2.0 * share * other * table[a][b]])
        found.append(Birth((a, b), share))
    return found


@combine(
    title="UpIT: a child of the least alike experts",
    paper="Hui et al. 2024, arXiv 2410.01610",
    experts=(2, None),
    needs=Totals(whole=True, gram=True, depends=()),
    vectors=[
        Vector([[4, -2], [4, -2]], [4, -2], {"density": 1.0}, source="of equal parents, by hand"),
        Vector(
            [[2, 0], [0, 2], [2, 2]],
            [2 * 0.8048831820487976, 2 * (1 - 0.8048831820487976)],
            {"density": 1.0},
            source="of the two at right angles, by the first number that is drawn, by hand",
        ),
        Vector([[0, 0], [0, 0]], [0, 0], {"child": 2}, source="nothing has changed, by hand"),
    ],
)
def upit(
    inputs: Sequence[Tensor],
    *,
    place: Place,
    sums: Sums | None,
    child: Annotated[int, Range(at_least=0), Doc("which of the children, in their order")] = 0,
    density: Chance = 0.5,
    lots: Annotated[int, Doc("random number from which parents' parts in a child follow")] = 0,
    draw: Annotated[int, Doc("random number of the matrix, from which dropped entries follow")] = 0,
) -> Tensor:
    """Make a new expert out of the two whose task vectors are the least alike.

    A child is a part of one parent and the rest of the other, each with random entries dropped and
    the others scaled up, as in DARE. Then the next child has the next pair, children among them.
    Cosines are those over all tensors that are made in this way. As experts of a routed model
    children are for training: `moe: {expand: 8}`.

    Order of operations: parents, and the part s of the first, by `births` in fp64, s rounded to
    fp32; x_p = DARE of parent p at `density`, kept by the key of (draw, child, p); y = x_b + s *
    (x_a - x_b) in fp32.
    """
    import torch

    gram = sums.gram if sums is not None else [[0.0] * len(inputs)] * len(inputs)
    found = births(gram, child + 1, density, lots)
    values = {number: tensor.float() for number, tensor in enumerate(inputs)}

    def value(number: int) -> Tensor:
        if number not in values:
            values[number] = born(number - len(inputs))
        return values[number]

    def born(number: int) -> Tensor:
        birth = found[number]
        parts = []
        for parent in birth.parents:
            key = random_key(draw, "upit", str(number), str(parent))
            mask = kept(inputs[0], replace(place, key=key), density)
            scale = single(1.0 / density)
            parts.append(torch.where(mask, value(parent) * scale, 0.0))
        first, second = parts
        return second + (first - second) * birth.share

    return born(child)
