"""Linear discriminants: the row and the bias under which an expert's texts are likeliest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from mergekit_lite.moe.families import FAMILIES
from mergekit_lite.moe.gates._annotations import Labels, Length, Through, Tokens
from mergekit_lite.moe.gates._measure import LayerSums, Reading, topics_of
from mergekit_lite.moe.gates._scale import pooled_gram, scaled
from mergekit_lite.moe.gates._spec import GateRequest, Gates, gate
from mergekit_lite.ops._parameters import Doc, Range

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mergekit_lite.moe.gates._measure import Array


@dataclass(frozen=True)
class Discriminants:
    """Scores rows x - offsets, of which the largest tells whose text a token x is of.

    Attributes:
        rows: (experts, d).
        centre: (d,) mean of the experts' means.
        scores: (experts,) of the centre.
    """

    rows: Array
    centre: Array
    scores: Array


def discriminants(sums: LayerSums, penalty: float) -> Discriminants:
    """Return linear discriminants of topics that count alike.

    Their covariance is that about each topic's own mean; `penalty` times the mean of its diagonal
    is added to the diagonal.
    """
    import numpy as np

    means = sums.total / sums.count[:, None]
    grams = sums.gram / sums.count[:, None, None]
    within = (grams - np.einsum("nd,ne->nde", means, means)).mean(0)
    within[np.diag_indices_from(within)] += penalty * np.trace(within) / len(within)
    centre: Array = means.mean(0)
    apart = means - centre
    rows: Array = np.linalg.solve(within, apart.T).T
    return Discriminants(rows, centre, -0.5 * np.einsum("nd,nd->n", rows, apart))


def biases(rows: Array, found: Discriminants, size: float, *, sigmoid: bool) -> Array:
    """Return what the choice needs added to scores of these rows to be that of the discriminants.

    A router adds it to sigmoids or parts of a softmax, not to logits. About the centre these grow
    with logits at one slope, so that the choice there is exactly that of the discriminants, and
    near it as nearly as the logits are small.

    Args:
        rows: as the router has them.
        found: what they come from.
        size: of the rows, over those of the discriminants.
        sigmoid: scores are sigmoids; otherwise a softmax.
    """
    import numpy as np

    logits = rows @ found.centre
    if sigmoid:
        slope, scores = 0.25, 1 / (1 + np.exp(-logits))
    else:
        parts = np.exp(logits - logits.max())
        slope, scores = 1 / len(rows), parts / parts.sum()
    wanted = slope * size * found.scores - scores
    centred: Array = wanted - wanted.mean()
    return centred


@gate(title="Linear discriminants", needs="texts", biased=True)
def lda(
    request: GateRequest,
    *,
    penalty: Annotated[
        float, Range(above=0), Doc("added to the covariance, over the mean of its diagonal")
    ] = 0.01,
    spread: Annotated[
        float,
        Range(above=0),
        Doc("standard deviation of the logits about each token's mean, small for a reason"),
    ] = 0.25,
    through: Through = "base",
    labels: Labels = "expert",
    tokens: Tokens = 16384,
    length: Length = 512,
) -> Gates:
    """Choose the expert under whose texts a token is likeliest, all texts spread alike.

    Rows are S^-1 (m_i - m) with m_i the mean of an expert's router inputs, m that of all experts
    and S the covariance about the means; the part that is the same for all tokens is in the bias
    of the choice, so it takes a family that has one. That bias is added to the sigmoid of a logit
    (or to a softmax), which is a straight line for small logits only. So the logits are small, and
    experts that a token passes count almost alike.
    """
    import numpy as np

    topics = topics_of(request.experts, request.texts)
    sigmoid = FAMILIES[request.plan.moe["target"]].sigmoid
    dtypes = {job.name: job.dtype for job in request.plan.jobs}
    rows: dict[int, NDArray[np.float32]] = {}
    added: dict[int, NDArray[np.float32]] = {}
    passed = request.measured().sums(topics, Reading(length, tokens, through, labels))
    for layer, sums in passed.layers:
        if layer not in request.routers:
            continue
        found = discriminants(sums, penalty)
        own = scaled(found.rows, pooled_gram(sums.gram, sums.count), spread)
        size = float(np.linalg.norm(own)) / max(float(np.linalg.norm(found.rows)), 1e-30)
        # The bias makes up for what rounding does to the part that all tokens share.
        own = _stored(own, dtypes[request.routers[layer]])
        rows[layer] = own.astype(np.float32)
        added[layer] = biases(own, found, size, sigmoid=sigmoid).astype(np.float32)
    return Gates(rows, {**passed.facts, "spread": spread}, biases=added)


def _stored(rows: Array, dtype: str) -> Array:
    """Return rows as they are after they have been rounded to the output's dtype."""
    import torch

    types = {"BF16": torch.bfloat16, "F16": torch.float16}
    rounded: Array = torch.from_numpy(rows).to(types.get(dtype, torch.float32)).double().numpy()
    return rounded
