"""What an op may ask to know about a whole tensor, or a whole model, before its first tile.

An op declares `needs=Order(...)` or `needs=Totals(...)`. The engine computes the answer in a sweep
of its own and hands it to the op as `cut` or `sums`. The torch functions here define the answer;
the fused kernels are held to them bit for bit. Importing this module does not import torch.

`Sums` have one fixed order of addition, so they do not depend on tiles, threads or devices:
blocks of 4096 entries by flat index; inside a block 16 interleaved lanes (entry j goes to lane
j % 16), each added up one after the other in fp64 from 0; the 16 lanes added in order 0..15, from
0; block sums added exactly by `math.fsum`. Products of two fp32 entries are taken in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """What all statistics share.

    Attributes:
        scope: name of the op's parameter that may say "model": the statistic is then taken over
            all float tensors of the model together. Empty: always over one tensor.
    """

    scope: str = ""

    def of_model(self, params: Mapping[str, Any]) -> bool:
        """Return whether these parameters ask for a sweep of the whole model."""
        return bool(self.scope) and params.get(self.scope) == "model"


@dataclass(frozen=True)
class Order(Statistic):
    """The k-th largest magnitudes of the op's input, one `Cut` for each rank.

    Attributes:
        ranks: (parameters, number of entries) -> the ranks k; none means no sweep is needed.
        ties: name of the op's parameter that may say "threshold": all entries tied with the
            k-th largest are then kept. So they are whenever the whole model is ranked.
    """

    ranks: Callable[[Mapping[str, Any], int], tuple[int, ...]]
    ties: str = ""

    def keeps_ties(self, params: Mapping[str, Any]) -> bool:
        """Return whether a cut keeps all tied entries (`until` is `EVERY`), not exactly k."""
        return self.of_model(params) or params.get(self.ties) == "threshold"


def _as_they_are(values: Sequence[Tensor], place: Place, params: Mapping[str, Any]) -> list[Tensor]:
    return list(values)


def _always(params: Mapping[str, Any]) -> bool:
    return True


@dataclass(frozen=True)
class Totals(Statistic):
    """Sums of magnitudes and inner products of the op's inputs.

    Attributes:
        absolute: sums of magnitudes are wanted.
        gram: inner products are wanted.
        wanted: parameters -> whether this step needs the sums at all.
        inputs: (op inputs, place, parameters) -> the fp32 tensors that are summed, entry by
            entry; by default the inputs themselves.
    """

    absolute: bool = False
    gram: bool = False
    wanted: Callable[[Mapping[str, Any]], bool] = _always
    inputs: Callable[[Sequence[Tensor], Place, Mapping[str, Any]], list[Tensor]] = _as_they_are


def order_cuts(values: Tensor, ranks: Sequence[int], *, keep_ties: bool = False) -> tuple[Cut, ...]:
    """Return where the k largest magnitudes of `values` end, for each k of `ranks`.

    Args:
        values: any shape and float dtype; magnitudes are compared in fp32.
        ranks: k = 0 gives (inf, 0); a k above the number of entries counts as that number.
        keep_ties: keep every entry tied with the k-th largest instead of exactly k.
    """
    magnitude = values.detach().float().abs().flatten()
    size = magnitude.numel()
    ordered = magnitude.sort(descending=True).values
    cuts = []
    for rank in (min(k, size) for k in ranks):
        if rank <= 0:
            cuts.append(Cut(math.inf, 0))
            continue
        threshold = ordered[rank - 1]
        tied = (magnitude == threshold).nonzero().flatten()
        wanted = rank - int((magnitude > threshold).sum())
        until = EVERY if keep_ties else int(tied[wanted - 1]) + 1
        cuts.append(Cut(float(threshold), until))
    return tuple(cuts)


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


def totals(inputs: Sequence[Tensor], *, absolute: bool = True, gram: bool = True) -> Sums:
    """Return the sums over whole tensors of the same size, in the order this module fixes.

    Args:
        inputs: tensors of any one shape; each entry is rounded to fp32 first.
        absolute: fill `Sums.absolute`.
        gram: fill `Sums.gram`.
    """
    exact = [value.detach().float().double() for value in inputs]
    magnitudes = tuple(add_blocks(block_sums(x.abs())) for x in exact) if absolute else ()
    if not gram:
        return Sums(absolute=magnitudes)
    size = len(exact)
    products = [[0.0] * size for _ in range(size)]
    for i, left in enumerate(exact):
        for j, right in enumerate(exact[: i + 1]):
            products[i][j] = products[j][i] = add_blocks(block_sums(left * right))
    return Sums(absolute=magnitudes, gram=tuple(tuple(row) for row in products))
