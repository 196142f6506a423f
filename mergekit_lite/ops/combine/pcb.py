"""PCB-Merging: let entries compete within their model and across models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from mergekit_lite.ops._annotations import Lambda, ModelScope
from mergekit_lite.ops._arithmetic import divide, single
from mergekit_lite.ops._place import Cut, Place
from mergekit_lite.ops._spec import Doc, Range, Vector, combine
from mergekit_lite.ops._statistics import Answer, Order

if TYPE_CHECKING:
    from torch import Tensor

_TAIL = 1e-4
"""Share of the smallest and of the largest magnitudes that are drawn in."""
_LEAST = 1e-12
"""A sum of scores below this divides as this."""
TAUS = [[4, -3, 1, 0.5, 0, -2], [-1, -5, 2, -0.5, 3, 2], [2, 1, -6, 0.25, 0, 1]]


def tails(params: Mapping[str, Any], size: int) -> tuple[int, ...]:
    """The ends of the magnitudes, as the authors index the sorted ones: the high, the low."""
    if size == 0:
        return ()
    return size - int(size * (1 - _TAIL) - 1), size - int(size * _TAIL)


def best(params: Mapping[str, Any], size: int) -> tuple[int, ...]:
    """The best score, and the one from which on scores count."""
    if size == 0:
        return ()
    return 1, size - min(int(size * (1 - params["ratio"])), size - 1)


def drawn_in(value: Tensor, cuts: Sequence[Cut]) -> Tensor:
    """Return the magnitudes with both tails cut off."""
    high, low = cuts[0].threshold, cuts[1].threshold
    return value.abs().clamp(min=low).clamp(max=high)


def scores(values: Sequence[Tensor], tails_of: Sequence[Sequence[Cut]]) -> list[Tensor]:
    """Return each model's score of each entry: within the model, times against the others."""
    total = values[0].clone()
    for value in values[1:]:
        total += value
    found = []
    for value, cuts in zip(values, tails_of, strict=True):
        high, low = cuts[0].threshold, cuts[1].threshold
        # fp64, as the exponentials of an accelerator differ in the last bit of fp32.
        score = drawn_in(value, cuts).double()
        if high > low:
            score.sub_(low).div_(score.new_full((), high - low)).square_().mul_(len(values)).exp_()
        else:
            score.fill_(1.0)
        found.append(score.mul_((value * total).double().tanh_()).float())
    return found


def scored(
    values: Sequence[Tensor], place: Place, params: Mapping[str, Any], found: tuple[Answer, ...]
) -> list[Tensor]:
    """What is ranked second: the scores, which need the tails of the magnitudes."""
    return scores([value.float() for value in values], found[0])


@combine(
    title="PCB-Merging: parameter competition balancing",
    paper="Du et al. 2024, arXiv 2410.02396",
    commutative=True,
    needs=(
        Order(tails, scope="scope", each=True, depends=()),
        Order(best, scope="scope", each=True, signed=True, derived=scored, depends=("ratio",)),
    ),
    vectors=[
        Vector(
            TAUS,
            [2.5, -3, -2, 0, 3, 0],
            {"ratio": 0.5, "lambda": 1.0},
            source="run of the authors' function",
        ),
        Vector(
            TAUS,
            [3, -3.6, -2.4, 0, 3.6, 0],
            {"ratio": 0.5, "scope": "tensor"},
            source="the same times 1.2",
        ),
    ],
)
def pcb(
    inputs: Sequence[Tensor],
    *,
    found: tuple[Answer, ...],
    ratio: Annotated[
        float, Range(above=0, at_most=1), Doc("share of each model's entries that count")
    ] = 0.1,
    lambda_: Lambda = 1.2,
    scope: ModelScope = "model",
) -> Tensor:
    """Average the task vectors, each entry weighted by how it fares in two competitions.

    Within its model an entry is strong if it is large, among the models if the others pull with it.
    The product is its score; the best `ratio` of each model's scores, between 0 and 1 from the
    least of them to the best, are the weights.

    Order of operations: u_i = |x_i| drawn in to the magnitudes that the smallest and the largest
    ten thousandth of a model's entries leave; n_i = (u_i - low)/(high - low), 0 where these are
    equal; t = x_0 + x_1 + ... in fp32, in order; S_i = float32(exp(N n_i^2) tanh(x_i t)) in fp64;
    s_i = (max(S_i, from) - from)/(best - from) in fp32, 0 where these are equal;
    num = 0; num = num + sign(x_i) u_i s_i; den = 0; den = den + s_i;
    num / max(den, 1e-12) * lambda.
    """
    import torch

    total = torch.zeros_like(inputs[0], dtype=torch.float32)
    if not found or not found[0]:
        return total
    mass = torch.zeros_like(total)
    each = zip(inputs, scores(inputs, found[0]), found[0], found[1], strict=True)
    for value, score, cuts, bounds in each:
        top, start = bounds[0].threshold, bounds[1].threshold
        if top > start:
            weight = divide(score.clamp(min=start) - start, single(top - start))
            total = total + value.sign() * drawn_in(value, cuts) * weight
            mass = mass + weight
    return total / mass.clamp(min=_LEAST) * single(lambda_)
