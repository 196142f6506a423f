"""Merge only what agrees in sign."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mergekit_lite.ops._annotations import Aggregate
from mergekit_lite.ops._arithmetic import divide, single
from mergekit_lite.ops._place import Place, Sums
from mergekit_lite.ops._spec import Doc, Vector, combine
from mergekit_lite.ops._statistics import Answer, Totals

if TYPE_CHECKING:
    from torch import Tensor

TAUS = [[4, -3, 1, 0.5, 0, -2], [-1, -5, 2, -0.5, 3, 2], [2, 1, -6, 0.25, 0, 1]]


def weighted(values: Sequence[Tensor], params: Mapping[str, Any]) -> list[Tensor]:
    """Return what the experts vote with: their task vectors times their weights."""
    weights = params.get("weights") or [1.0] * len(values)
    return [value.float() * single(w) for value, w in zip(values, weights, strict=True)]


def voters(values: Sequence[Tensor], place: Place, params: Mapping[str, Any]) -> list[Tensor]:
    """What the norms are taken of, for votes that count relative to them."""
    return weighted(values, params)


def first_votes(
    values: Sequence[Tensor], place: Place, params: Mapping[str, Any], found: tuple[Answer, ...]
) -> list[Tensor]:
    """What the majority of the model is counted over: each entry's sign before ties are broken."""
    return [elected_sign(weighted(values, params), params["elect"], norms_of(found[0]))]


def norms_of(sums: Sums | None) -> list[float]:
    """Return the norm of each expert's votes over the whole model."""
    gram = sums.gram if sums else ()
    return [math.sqrt(row[i]) for i, row in enumerate(gram)]


def elected_sign(shares: Sequence[Tensor], elect: str, norms: Sequence[float] = ()) -> Tensor:
    """Return the winning sign of each entry: -1, 0 or 1; NaN, as of inf - inf, elects nobody."""
    import torch

    if elect.startswith("norm"):
        parts = [
            divide(share, single(norm)) if norm else share * 0.0
            for share, norm in zip(shares, norms, strict=True)
        ]
        if elect == "normfrac":
            best, sign = parts[0].abs(), parts[0].sign()
            for part in parts[1:]:
                larger = part.abs() > best
                best = torch.where(larger, part.abs(), best)
                sign = torch.where(larger, part.sign(), sign)
            return sign
        shares = [part * part.abs() for part in parts]
    votes = shares[0].sign() if elect == "count" else shares[0].clone()
    for share in shares[1:]:
        votes += share.sign() if elect == "count" else share
    return torch.where(votes.isnan(), votes, votes.sign())


def broken_ties(sign: Tensor, zero_sign: str, majority: float) -> Tensor:
    """Return the signs with a vote of exactly zero decided, and 0 for one that is NaN."""
    instead = 1.0 if zero_sign == "plus" else float((majority > 0) - (majority < 0))
    decided = sign if zero_sign == "none" else sign.masked_fill(sign == 0, instead)
    return decided.nan_to_num(nan=0.0)


@combine(
    title="Sign election and disjoint merge",
    paper="Yadav et al. 2023, arXiv 2306.01708 (elect and merge of TIES-Merging)",
    commutative=True,
    idempotent=True,
    needs=(
        Totals(
            whole=True,
            gram=True,
            wanted=lambda params: params["elect"].startswith("norm"),
            inputs=voters,
            depends=("elect", "weights"),
        ),
        Totals(
            whole=True,
            plain=True,
            wanted=lambda params: params["zero_sign"] == "majority",
            derived=first_votes,
            depends=("elect", "zero_sign", "weights"),
        ),
    ),
    compat={"mergekit": {"divisor": "signed"}},
    vectors=[
        Vector(TAUS, [3, -4, -6, 0.375, 3, 1.5], source="independent run: by mass, mean"),
        Vector(
            TAUS, [6, -8, -6, 0.75, 3, 3], {"agg": "sum"}, source="independent run: by mass, sum"
        ),
        Vector(
            TAUS,
            [6, -8, 3, 0.75, 3, 3],
            {"agg": "sum", "elect": "count"},
            source="independent run: by count, sum",
        ),
        Vector(TAUS, [4, -5, -6, 0.5, 3, 2], {"agg": "max"}, source="by mass, max, by hand"),
        Vector(
            [[3, 1], [1, -4]],
            [2.5, -4],
            weights=[3, 1],
            source="shares 9 and 1 over 4; 3 and -4, by hand",
        ),
        Vector([[1, 2], [-1, -2]], [1, 2], source="a sum of zero counts as plus, by hand"),
        Vector(
            [[1, 2], [-1, -2]], [0, 0], {"zero_sign": "none"}, source="or elects nobody, by hand"
        ),
        Vector(
            [[1, 2], [-1, 1], [0, 0]],
            [1, 1.5],
            {"zero_sign": "majority"},
            source="the second entry elects plus, so the first does too, by hand",
        ),
        Vector(
            [[1, -2], [-1, -1]],
            [-1, -1.5],
            {"zero_sign": "majority"},
            source="or minus, by hand",
        ),
        Vector(
            [[3, 4], [-1, 0]],
            [-1, 4],
            {"elect": "normfrac"},
            source="shares 9/25 against 1: the second expert wins the first entry, by hand",
        ),
        Vector(
            [[4, 3], [-2, 1.5], [1, 0]],
            [2.5, 2.25],
            {"elect": "normmass"},
            source="16/25 - 16/25 + 1 and 9/25 + 9/25: plus, by hand",
        ),
        Vector(
            [[2, 3], [0, -1]],
            [-2, -2],
            weights=[-1, 1],
            source="forgotten, not learnt: -2 over 1; -3 and -1 over 2, by hand",
        ),
        Vector(
            [[2, 3], [0, -1]],
            [2, 0],
            {"divisor": "signed"},
            weights=[-1, 1],
            source="-2 over -1; over -1 + 1 = 0 nothing, by hand",
        ),
    ],
)
def sign_consensus(
    inputs: Sequence[Tensor],
    *,
    weights: Sequence[float],
    found: tuple[Answer, ...] = (),
    elect: Annotated[
        Literal["mass", "count", "normfrac", "normmass"],
        Doc(
            "vote by summed magnitude or by head count, or by shares of each expert's squared norm:"
            " the largest share wins, or their sum"
        ),
    ] = "mass",
    agg: Aggregate = "mean",
    zero_sign: Annotated[
        Literal["plus", "none", "majority"],
        Doc("a vote of exactly zero elects plus, nobody, or what most entries of the model elect"),
    ] = "plus",
    divisor: Annotated[
        Literal["absolute", "signed"],
        Doc("divide a mean by the sum of |weight| or of weight: other only where one is negative"),
    ] = "absolute",
) -> Tensor:
    """Elect a sign for each entry and merge only the experts that agree with it.

    Weights multiply the task vectors before the vote. Trimming is a step of its own: put
    `magnitude` before this one for TIES, or use the preset `ties`.

    Order of operations: all in fp32, weights rounded to fp32 first. p_i = w_i*x_i.
    Vote: s = p_0; s = s + p_1; ... (`count`: the same over sign(p_i)). e = sign(s), with 1 for
    s == 0 under `plus`, and under `majority` the sign of the sum of all signs of the model; a NaN,
    as of inf - inf, elects nobody. Under `normfrac` and `normmass` q_i = p_i / float32(norm of p_i
    over the whole model): the sign of the first q_i of largest magnitude, or of q_0 |q_0|; + q_1
    |q_1|; ... Expert i agrees where p_i != 0 and
    sign(p_i) == e.
    sum: num = 0; num = num + p_i over agreeing i, in order.
    mean: den = 0; den = den + |w_i| over agreeing i, in order (`signed`: + w_i); num / den, and
    +0.0 where den == 0.
    max: top = 0; top = max(top, |p_i|) over agreeing i; e * top.
    """
    import torch

    shares = weighted(inputs, {"weights": weights})
    norms, signs = found or (None, None)
    sign = elected_sign(shares, elect, norms_of(norms))
    elected = broken_ties(sign, zero_sign, signs.plain[0] if signs else 0.0)
    agreeing = [(p.sign() == elected) & (p != 0) for p in shares]
    total = torch.zeros_like(elected)
    for share, agrees in zip(shares, agreeing, strict=True):
        kept = torch.where(agrees, share, 0.0)
        total = torch.maximum(total, kept.abs()) if agg == "max" else total + kept
    if agg == "max":
        return elected * total
    if agg == "sum":
        return total
    mass = torch.zeros_like(elected)
    for agrees, weight in zip(agreeing, weights, strict=True):
        mass = mass + agrees * (abs(single(weight)) if divisor == "absolute" else single(weight))
    return torch.where(mass != 0, total / mass, 0.0)
