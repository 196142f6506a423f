"""Makes the orders of neurons and the routers of a carved model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.moe.carve._layer import Layer, Material, Passed, Seen, Shares, Split, width_of
from mergekit_lite.moe.carve.cmoe import cmoe
from mergekit_lite.moe.carve.coactivation import coactivation
from mergekit_lite.moe.carve.contiguous import contiguous
from mergekit_lite.moe.carve.exact import exact_router
from mergekit_lite.moe.carve.gradient import gradient
from mergekit_lite.moe.carve.kmeans import kmeans
from mergekit_lite.moe.carve.random import random
from mergekit_lite.moe.carve.routers import router
from mergekit_lite.moe.dense.carved import NEURONS_FILE
from mergekit_lite.moe.families.routed import EXACT
from mergekit_lite.moe.gates import GateRequest, Gates
from mergekit_lite.ops._place import random_key

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

METHODS: Mapping[str, Callable[[Layer, Shares], Split]] = {
    "cmoe": cmoe,
    "coactivation": coactivation,
    "gradient": gradient,
    "kmeans": kmeans,
    "random": random,
    "contiguous": contiguous,
}


def make_carve(request: GateRequest, material: Material) -> Gates:
    """Return orders and routers of every carved layer, and leave the orders beside the weights."""
    carve = request.plan.moe["carve"]
    passed = _passed(request, material, carve)
    rows: dict[int, NDArray[np.float32]] = {}
    orders: dict[int, NDArray[np.float32]] = {}
    named: dict[str, NDArray[np.float32]] = {}
    told: dict[str, dict[str, Any]] = {}
    for index, seen in passed.layers:
        if index not in request.routers:
            continue
        parts = [material.matrix(index, part) for part in ("gate", "up", "down")]
        key = random_key(request.seed, "carve", "", request.routers[index])
        layer = Layer(parts[0], parts[1], parts[2], seen.inputs, key, seen.slopes)
        shares = Shares.of(layer.neurons, carve["experts"], carve["shared"])
        split = METHODS[carve["method"]](layer, shares)
        orders[index] = order_of(split, layer.neurons, carve["experts"])
        facts: dict[str, Any]
        if carve["router"] == "exact":
            exact = exact_router(layer, split, per_token=request.per_token)
            rows[index] = exact.gate
            named |= _beside(request.routers[index], exact.up)
            facts = {"typical": exact.neurons.tolist(), "agreement": exact.agreement}
        else:
            rows[index], facts = _linear(request, carve, layer, split)
        told[str(index)] = facts
        request.say(f"layer {index}: {_sentence(facts.get('agreement'), request, carve)}")
    listed = {str(index): orders[index].astype(int).tolist() for index in sorted(orders)}
    lines = ",\n".join(f'"{index}": {json.dumps(order)}' for index, order in listed.items())
    (request.folder / NEURONS_FILE).write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    facts = {
        **passed.facts,
        "neurons": NEURONS_FILE,
        "layers": dict(sorted(told.items(), key=lambda own: int(own[0]))),
    }
    return Gates(rows, facts, orders, named=named)


def _linear(
    request: GateRequest, carve: Mapping[str, Any], layer: Layer, split: Split
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Return the rows of a router that a stock family has, and what is told of them."""
    found = router(
        carve["router"], layer, split, per_token=request.per_token, penalty=carve["penalty"]
    )
    epsilon = found.epsilon() if carve["epsilon"] == "auto" else carve["epsilon"]
    facts = {"epsilon": epsilon}
    if found.agreement is not None:
        facts["agreement"] = found.agreement
    return (found.rows * epsilon).astype("float32"), facts


def _beside(gate: str, up: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Return what an exact router is made of beside its first matrix, which is called `gate`.

    Bias and scale are there for further training.
    """
    import numpy as np

    root = gate.removesuffix(EXACT["gate_weight"])
    found = {part: np.zeros(len(up), np.float32) for part in ("bias", "scale")}
    return {root + EXACT[part]: value for part, value in {**found, "up_weight": up}.items()}


def order_of(split: Split, neurons: int, slices: int) -> NDArray[np.float32]:
    """Return the neuron at each place of a carved layer; `neurons` stands for one of zeros.

    The shared expert's slices come first; each slice has as many places.
    """
    import numpy as np

    width = width_of(neurons, slices)
    shared = slices - len(split.routed)
    groups = [(split.shared, shared * width), *((own, width) for own in split.routed)]
    padded = [
        np.concatenate([np.sort(own), np.full(places - len(own), neurons)])
        for own, places in groups
    ]
    return np.concatenate(padded).astype(np.float32)


def _passed(request: GateRequest, material: Material, carve: Mapping[str, Any]) -> Passed:
    if carve["data"] is None:
        return Passed(_nothing(request), {})
    file = request.texts / Path(carve["data"])
    back = carve["method"] == "gradient"
    return material.passed(file, tokens=carve["tokens"], length=carve["length"], back=back)


def _nothing(request: GateRequest) -> Iterator[tuple[int, Seen]]:
    for index in request.routers:
        yield index, Seen()


def _sentence(agreement: float | None, request: GateRequest, carve: Mapping[str, Any]) -> str:
    routed = carve["experts"] - carve["shared"]
    text = f"{carve['method']} into {routed} slices"
    if agreement is None:
        return text
    return (
        f"{text}; the router chooses {agreement:.0%} of the {request.per_token} that contribute"
        f" most, chance would {request.per_token / routed:.0%}"
    )
