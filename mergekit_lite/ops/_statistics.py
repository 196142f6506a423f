"""What an op may ask to know about a whole tensor, or a whole model, before its first tile.

An op declares `needs=Order(...)` or `needs=Totals(...)`. The engine computes the answer in a sweep
of its own and hands it to the op as `cut` or `sums`; an op that declares several, in order, gets
the tuple of all answers as `found`. The torch functions here define the answer;
the fused kernels are held to them bit for bit. Importing this module does not import torch.

`Sums` have one fixed order of addition, so they do not depend on tiles, threads or devices:
blocks of 4096 entries by flat index; inside a block 16 interleaved lanes (entry j goes to lane
j % 16), each added up one after the other in fp64 from 0; the 16 lanes added in order 0..15, from
0; block sums added exactly by `math.fsum`. Products of two fp32 entries are taken in fp64.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from mergekit_lite.ops._place import Cut, Place, Sums

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 4096
"""Entries of a block of a sum; tiles that are summed on their own start at a multiple of it."""
LANES = 16
"""Interleaved accumulators of a block."""
EVERY = 2**63 - 1
"""`Cut.until` of a cut that keeps all entries tied with the threshold."""


Values = Sequence["Tensor"]
Params = Mapping[str, Any]
Answer = Any
"""What a statistic gives: an `Order` cuts, or a tuple of them for each input; `Totals` a `Sums`, or
one by layer; nothing (None or `()`) where a step needs none. An op with several statistics is given
the tuple of their answers."""


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """What all statistics share.

    Attributes:
        scope: name of the op's parameter that may say "model": the statistic is then taken over
            all float tensors of the model together. Empty: always over one tensor.
        whole: always over the whole model.
        depends: the op's parameters that the answer depends on, `weights` among them if it does;
            None is all of them but the weights. Of a whole model, `ranks` and `wanted` are given
            these alone; others may change without another sweep.
        inputs: (op inputs, place, parameters) -> the fp32 tensors that are looked at, entry by
            entry; by default the op's inputs themselves.
        derived: the same from (op inputs, place, parameters, answers), for a statistic that needs
            the answers of those which the op declares before it.
    """

    scope: str = ""
    whole: bool = False
    depends: tuple[str, ...] | None = None
    inputs: Callable[[Values, Place, Params], list[Tensor]] | None = None
    derived: Callable[[Values, Place, Params, tuple[Answer, ...]], list[Tensor]] | None = None

    def of_model(self, params: Params) -> bool:
        """Return whether these parameters ask for a sweep of the whole model."""
        return self.whole or (bool(self.scope) and params.get(self.scope) == "model")

    def asked(self, params: Params, size: int) -> bool:
        """Return whether a step with these parameters needs it, for so many entries."""
        raise TypeError("a statistic is an Order or Totals")

    def of(
        self, values: Values, place: Place, params: Params, found: tuple[Answer, ...]
    ) -> list[Tensor]:
        """Return the tensors it is taken of, from the op's inputs or a tile of them."""
        if self.derived is not None:
            return self.derived(values, place, params, found)
        chosen = list(values) if self.inputs is None else self.inputs(values, place, params)
        return [value.float() for value in chosen]


@dataclass(frozen=True)
class Order(Statistic):
    """The k-th largest magnitudes of the op's input, one `Cut` for each rank.

    What is ranked must be zero where all of the op's inputs are: so tensors that nobody changes
    are ranked with the others without being read.

    Attributes:
        ranks: (parameters, number of entries) -> the ranks k; none means no sweep is needed.
        ties: name of the op's parameter that may say "threshold" or "official": all entries tied
            with the k-th largest are then kept. So they are whenever the whole model is ranked.
        signed: rank the values as they are, the largest first, and not their magnitudes.
        each: rank every input; the answer is a tuple of cuts for each. Else only the first.
        share: parameters -> in place of ranks, the least k of which the k largest magnitudes have
            this share of the sum of all squares, exactly; `ranks` then says just whether any.
    """

    ranks: Callable[[Params, int], tuple[int, ...]]
    ties: str = ""
    signed: bool = False
    each: bool = False
    share: Callable[[Params], float] | None = None

    def share_for(self, params: Params) -> float | None:
        """Return the share of the sum of squares that is wanted, None where ranks are."""
        return self.share(params) if self.share is not None else None

    def keeps_ties(self, params: Params) -> bool:
        """Return whether a cut keeps all tied entries (`until` is `EVERY`), not exactly k."""
        return self.of_model(params) or params.get(self.ties) in ("threshold", "official")

    def asked(self, params: Params, size: int) -> bool:
        return bool(self.ranks(params, size))


def _always(params: Params) -> bool:
    return True


@dataclass(frozen=True)
class Totals(Statistic):
    """Sums over the op's inputs.

    Attributes:
        absolute: sums of magnitudes are wanted.
        gram: inner products are wanted.
        plain: sums of the entries as they are are wanted.
        wanted: parameters -> whether this step needs the sums at all.
        of_zeros: what each of the tensors that are summed holds where all of the op's inputs are
            zero; empty means zero. So are tensors counted that nobody changes.
        by_layer: only of a whole model: the answer has the `Sums` of each layer by its index, and
            those of all tensors outside the layers at `OUTSIDE`.
    """

    absolute: bool = False
    gram: bool = False
    plain: bool = False
    wanted: Callable[[Params], bool] = _always
    of_zeros: tuple[float, ...] = ()
    by_layer: bool = False

    def of_model(self, params: Params) -> bool:
        return super().of_model(params) and self.wanted(params)

    def asked(self, params: Params, size: int) -> bool:
        return self.wanted(params)


OUTSIDE = -1
"""The layer of what is in none, where sums are told by layer."""


def order_cuts(
    values: Tensor, ranks: Sequence[int], *, keep_ties: bool = False, signed: bool = False
) -> tuple[Cut, ...]:
    """Return where the k largest magnitudes of `values` end, for each k of `ranks`.

    Args:
        values: any shape and float dtype; magnitudes are compared in fp32.
        ranks: k = 0 gives (inf, 0); a k above the number of entries counts as that number.
        keep_ties: keep every entry tied with the k-th largest instead of exactly k.
        signed: compare the values themselves.
    """
    ranked = values.detach().float().flatten()
    ranked = ranked if signed else ranked.abs()
    size = ranked.numel()
    ordered = ranked.sort(descending=True).values
    cuts = []
    for rank in (min(k, size) for k in ranks):
        if rank <= 0:
            cuts.append(Cut(math.inf, 0))
            continue
        threshold = ordered[rank - 1]
        tied = (ranked == threshold).nonzero().flatten()
        wanted = rank - int((ranked > threshold).sum())
        until = EVERY if keep_ties else int(tied[wanted - 1]) + 1
        cuts.append(Cut(float(threshold), until))
    return tuple(cuts)


def whole_square(bits: int) -> int:
    """Return the square of the fp32 number with these magnitude bits, times 2^298."""
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    whole = mantissa | (0x800000 if exponent else 0)
    return whole * whole << 2 * max(exponent - 1, 0)


def shared_ranks(values: Tensor, share: float) -> tuple[int]:
    """Return the least k of which the k largest have a share of the sum of squares; exactly.

    Zeros alone have nothing to share, so that k is 0.
    """
    import torch

    bits = values.detach().float().flatten().abs().view(torch.int32).sort(descending=True).values
    sums = list(accumulate(map(whole_square, bits.tolist())))
    wanted, parts = share.as_integer_ratio()
    least = wanted * (sums[-1] if sums else 0)
    return (bisect_left(sums, least, key=lambda total: total * parts) + 1 if least else 0,)


def model_cuts(
    order: Order, params: Mapping[str, Any], values: Mapping[str, Tensor]
) -> tuple[Cut, ...]:
    """Return the cuts over all float tensors of a model together; tied entries are all kept.

    Args:
        values: the op's input for every float tensor, by tensor name.
    """
    import torch

    every = torch.cat([value.detach().float().flatten() for value in values.values()])
    return order_cuts(every, order.ranks(params, every.numel()), keep_ties=True)


def answer_of(
    needs: Statistic, params: Params, values: Values, place: Place, found: tuple[Answer, ...] = ()
) -> Answer:
    """Return a statistic of whole tensors; one of the whole model is that of these tensors alone.

    Args:
        values: the op's inputs.
        place: where they are.
        found: the answers of the statistics that the op declares before this one.
    """
    size = values[0].numel()
    if not needs.asked(params, size):
        return () if isinstance(needs, Order) else None
    inputs = needs.of(values, place, params, found)
    if isinstance(needs, Order):
        keep, ranks = needs.keeps_ties(params), needs.ranks(params, size)
        share = needs.share_for(params)
        every = tuple(
            order_cuts(
                value,
                shared_ranks(value, share) if share is not None else ranks,
                keep_ties=keep,
                signed=needs.signed,
            )
            for value in inputs
        )
        return every if needs.each else every[0]
    if not isinstance(needs, Totals):
        raise TypeError("a statistic is an Order or Totals")
    sums = totals(inputs, absolute=needs.absolute, gram=needs.gram, plain=needs.plain)
    return {OUTSIDE if place.layer is None else place.layer: sums} if needs.by_layer else sums


def block_sums(terms: Tensor) -> list[float]:
    """Return the fp64 sum of each block of 4096 fp64 terms, lane by lane."""
    import torch

    terms = terms.flatten()
    blocks = -(-terms.numel() // BLOCK)
    padded = torch.nn.functional.pad(terms, (0, blocks * BLOCK - terms.numel()))
    steps = padded.reshape(blocks, BLOCK // LANES, LANES)
    lanes = torch.zeros(blocks, LANES, dtype=torch.float64, device=terms.device)
    for step in range(BLOCK // LANES):
        lanes = lanes + steps[:, step]
    total = torch.zeros(blocks, dtype=torch.float64, device=terms.device)
    for lane in range(LANES):
        total = total + lanes[:, lane]
    return [float(value) for value in total.tolist()]


def add_blocks(blocks: Sequence[float]) -> float:
    """Return the exact sum of block sums, rounded once; their order does not matter."""
    # fsum raises on inf - inf, where a plain sum gives the NaN that the caller can report.
    return math.fsum(blocks) if all(map(math.isfinite, blocks)) else sum(blocks)


def totals(
    inputs: Sequence[Tensor], *, absolute: bool = True, gram: bool = True, plain: bool = False
) -> Sums:
    """Return the sums over whole tensors of the same size, in the order this module fixes.

    Args:
        inputs: tensors of any one shape; each entry is rounded to fp32 first.
        absolute: fill `Sums.absolute`.
        gram: fill `Sums.gram`.
        plain: fill `Sums.plain`.
    """
    exact = [value.detach().float().double() for value in inputs]
    magnitudes = tuple(add_blocks(block_sums(x.abs())) for x in exact) if absolute else ()
    plainly = tuple(add_blocks(block_sums(x)) for x in exact) if plain else ()
    if not gram:
        return Sums(absolute=magnitudes, plain=plainly)
    size = len(exact)
    products = [[0.0] * size for _ in range(size)]
    for i, left in enumerate(exact):
        for j, right in enumerate(exact[: i + 1]):
            products[i][j] = products[j][i] = add_blocks(block_sums(left * right))
    return Sums(absolute=magnitudes, gram=tuple(tuple(row) for row in products), plain=plainly)
