"""Ways of making the gates of a mixture of adapters: rows for each module that adapters change."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import getdoc
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mergekit_lite.ops._parameters import Doc, Parameter, Range
from mergekit_lite.ops._place import random_key
from mergekit_lite.ops._random import normals
from mergekit_lite.ops._spec import parameters_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rows = NDArray[np.float64]

Score = Literal["linear", "absolute", "layer_norm"]
"""What is multiplied with a row: the token, the token without the product's sign, or the token at
mean 0 and variance 1."""


@dataclass(frozen=True)
class ModuleRequest:
    """What the rows of one module are made from.

    Attributes:
        module: its name.
        inputs: entries of a row.
        pairs: (A, B) of each expert in fp64, None of one that leaves the module alone.
        vectors: of each expert, where the recipe names files of them.
        seed: of the recipe.
    """

    module: str
    inputs: int
    pairs: Sequence[tuple[Rows, Rows] | None]
    vectors: Sequence[Rows]
    seed: int


Make = Callable[..., "Rows"]


@dataclass(frozen=True)
class LoraGate:
    """All that is known about a way of making gates.

    Attributes:
        name, title, summary: of it.
        score: what the model does with a token and the rows.
        parameters: what the recipe may write beside `method`.
        make: returns the rows of one module, (experts, inputs).
        vectors: every expert needs `rows`.
        usual: experts that a token passes where nothing else is said.
    """

    name: str
    title: str
    summary: str
    score: Score
    parameters: Mapping[str, Parameter]
    make: Make
    vectors: bool = False
    usual: int = 2

    def problems(self, params: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return (parameter, what is wrong with it) for everything that is."""
        found = []
        for name, value in params.items():
            if name not in self.parameters:
                known = ", ".join(f"`{key}`" for key in self.parameters) or "none"
                text = f"the gate `{self.name}` has no parameter `{name}`; it has {known}"
                found.append((name, text))
            elif wrong := self.parameters[name].problem(value):
                found.append((name, f"`{name}` of the gate `{self.name}` {wrong}"))
        missing = [
            key
            for key, parameter in self.parameters.items()
            if parameter.required and key not in params
        ]
        return found + [(key, f"the gate `{self.name}` needs `{key}`") for key in missing]


LORA_GATES: dict[str, LoraGate] = {}
Temperature = Annotated[
    float, Range(above=0), Doc("what logits are divided by before their softmax")
]


def _gate(
    title: str, score: Score, *, vectors: bool = False, usual: int = 2
) -> Callable[[Make], Make]:
    def decorate(function: Make) -> Make:
        name = function.__name__.rstrip("_")
        text = re.split(r"(?<=\.)\s", getdoc(function) or "", maxsplit=1)[0].replace("\n", " ")
        parameters = parameters_of(function)[0]
        LORA_GATES[name] = LoraGate(name, title, text, score, parameters, function, vectors, usual)
        return function

    return decorate


@_gate("Arrow", "absolute", usual=3)
def arrow(request: ModuleRequest, *, temperature: Temperature = 1.0) -> Rows:
    """Take the direction that each adapter's change of the module reacts to most, either way.

    It is the first right singular vector of B A, found through the QR decompositions of both
    factors; the product is never made. Ostapenko et al. 2024, arXiv 2405.11157.
    """
    import numpy as np

    rows = np.zeros((len(request.pairs), request.inputs))
    for row, pair in zip(rows, request.pairs, strict=True):
        if pair is not None:
            row[:] = prototype(*pair)
    return rows


@_gate("PHATGOOSE", "layer_norm", vectors=True)
def phatgoose(request: ModuleRequest, *, temperature: Temperature = 1.0) -> Rows:
    """Take the vectors that were trained beside each adapter, at mean 0 and variance 1.

    Logits are LayerNorm(x) . LayerNorm(g) / sqrt(d). Muqeeth et al. 2024, arXiv 2402.05859.
    """
    import numpy as np

    found = np.stack([normalised(vector) for vector in request.vectors])
    rows: Rows = found / np.sqrt(request.inputs)
    return rows


@_gate("GLIDER", "layer_norm", vectors=True)
def glider(
    request: ModuleRequest,
    *,
    tasks: Annotated[str, Doc("a JSON file: for each expert, the embedding of its task")],
    scale: Annotated[float, Range(at_least=0), Doc("weight of a request's task")] = 3.0,
    temperature: Temperature = 1.0,
) -> Rows:
    """Take the vectors of PHATGOOSE, and let each request say how near it is to each expert's task.

    A request's embedding e adds scale * cos(e, e_i) to the logits of expert i in every module.
    Li et al. 2024, arXiv 2410.07172.
    """
    return phatgoose(request)


@_gate("Zeros", "linear")
def zeros(request: ModuleRequest) -> Rows:
    """Take no row at all: with all experts active, the result is their mean."""
    import numpy as np

    return np.zeros((len(request.pairs), request.inputs))


@_gate("Random", "linear")
def random(
    request: ModuleRequest,
    *,
    std: Annotated[float, Range(above=0), Doc("standard deviation of the entries")] = 0.02,
    temperature: Temperature = 1.0,
) -> Rows:
    """Draw the rows, for training."""
    count = len(request.pairs) * request.inputs
    key = random_key(request.seed, "lora_gate", "", request.module)
    rows: Rows = normals(0, count, key).reshape(len(request.pairs), -1) * std
    return rows


def prototype(a: Rows, b: Rows) -> Rows:
    """Return the direction of the inputs that `b @ a` amplifies most, its largest entry positive.

    Args:
        a: (rank, inputs).
        b: (outputs, rank).
    """
    import numpy as np

    inputs, wide = np.linalg.qr(a.T)
    tall = np.linalg.qr(b)[1]
    _, sizes, right = np.linalg.svd(tall @ wide.T)
    found: Rows = inputs @ right[0] if sizes[0] > 0 else np.zeros(a.shape[1])
    largest = np.argmax(np.abs(found))
    return found if found[largest] >= 0 else -found


def normalised(vector: Rows, epsilon: float = 1e-5) -> Rows:
    """Return a vector at mean 0 and variance 1, as a LayerNorm without weights gives it."""
    import numpy as np

    centred = vector - vector.mean()
    found: Rows = centred / np.sqrt(np.square(centred).mean() + epsilon)
    return found
