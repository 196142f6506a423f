"""Rows that are trained: how much of an expert each token wants, learnt on its own texts alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from mergekit_lite.errors import DataError
from mergekit_lite.moe.gates._annotations import Length, Tokens
from mergekit_lite.moe.gates._measure import Reading, topics_of
from mergekit_lite.moe.gates._spec import GateRequest, Gates, gate
from mergekit_lite.ops._parameters import Doc, Range

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mergekit_lite.moe.gates._measure import Array

_BETAS = 0.9, 0.999
_WARM = 0.06


def trained(inputs: Array, loud: Array, steps: int, rate: float) -> Array:
    """Return a vector g whose sigmoid(x g) lets through what an expert adds.

    Minimises the mean over tokens of loud (1 - sigmoid(x g))^2, which is how far a layer stays from
    the expert's if it adds sigmoid(x g) of what the expert changes. By Adam from zero, over all
    tokens at each step, the rate growing over the first 6 % of the steps; nothing is drawn.

    Args:
        inputs: (tokens, d) what the layer is shown.
        loud: (tokens,) squared norm of what the expert changes; not all zero.
        steps: of the optimiser.
        rate: of learning.
    """
    import numpy as np

    weights = loud / loud.sum()
    found, first, second = (np.zeros(inputs.shape[1]) for _ in range(3))
    for step in range(1, steps + 1):
        open_ = 1 / (1 + np.exp(-(inputs @ found)))
        slope = -2 * inputs.T @ (weights * open_ * (1 - open_) ** 2)
        first = _BETAS[0] * first + (1 - _BETAS[0]) * slope
        second = _BETAS[1] * second + (1 - _BETAS[1]) * np.square(slope)
        size = rate * min(1.0, step / max(_WARM * steps, 1))
        mean, square = first / (1 - _BETAS[0] ** step), second / (1 - _BETAS[1] ** step)
        found = found - size * mean / (np.sqrt(square) + 1e-12)
    return found


def standardised(vectors: Array) -> Array:
    """Return rows whose entries have the mean 0 and the spread 1, over the root of their number.

    PHATGOOSE standardises a token's router input too, which no stock router does. As these rows
    have the mean 0, their products with a token are those with the standardised one times the
    token's own spread: the same experts are chosen, at another temperature.
    """
    import numpy as np

    apart = vectors - vectors.mean(1, keepdims=True)
    spread = np.sqrt(np.square(apart).mean(1, keepdims=True) + 1e-12)
    rows: Array = apart / spread / np.sqrt(vectors.shape[1])
    return rows


@gate(title="PHATGOOSE", needs="texts", alone=True)
def phatgoose(
    request: GateRequest,
    *,
    steps: Annotated[int, Range(at_least=1), Doc("steps of training of each row")] = 100,
    rate: Annotated[float, Range(above=0), Doc("rate of learning")] = 5e-3,
    temperature: Annotated[
        float,
        Range(above=0),
        Doc("divides the rows; at 1 they are in the mean as the paper's on standardised inputs"),
    ] = 1.0,
    tokens: Tokens = 16384,
    length: Length = 512,
) -> Gates:
    """Train each row on its expert's texts alone, to let through what the expert adds.

    Texts run through their own expert, and a sigmoid gate learns, layer by layer, how much each
    token needs of the expert's change of the base's layer. So experts may come from people who do
    not share texts. Rows are then standardised, as PHATGOOSE's are (arXiv:2402.05859). Here each
    layer is trained to come near the expert's own layer, on inputs that are taken down in one
    pass; the paper trains all gates together to predict the texts, which takes a pass forth and
    back for each step.
    """
    import numpy as np

    measure, reading = request.measured(), Reading(length, tokens, "expert")
    topics = topics_of(request.experts, request.texts)
    found: dict[int, list[Array]] = {layer: [] for layer in request.routers}
    spreads: dict[int, list[float]] = {layer: [] for layer in request.routers}
    for topic in topics:
        for layer, inputs, loud in measure.changes(topic, reading):
            if layer not in found:
                continue
            if not loud.any():
                raise DataError(
                    f"expert `{topic.name}` changes nothing in layer {layer}, so there is nothing"
                    " to learn about when it is needed",
                    "moe.gate",
                    "take `ridge`, or another expert",
                )
            found[layer].append(trained(inputs, loud, steps, rate))
            spreads[layer].append(float(inputs.std(1).mean()))
    rows: dict[int, NDArray[np.float32]] = {}
    for layer, vectors in found.items():
        own = standardised(np.stack(vectors)) / (float(np.mean(spreads[layer])) * temperature)
        rows[layer] = own.astype(np.float32)
    return Gates(rows, {**measure.facts(topics, reading), "steps": steps})
