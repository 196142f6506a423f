"""What a way of making gates is: a function under a decorator, one a file.

A gate is the matrix of a router, one row for each expert. A method's keyword-only parameters are
what the recipe may write beside `method`. Modules of methods import no torch when they are
imported; what they need for making rows they import inside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergekit_lite.errors import MergekitLiteError
from mergekit_lite.moe.gates._measure import Measure
from mergekit_lite.ops._parameters import Parameter
from mergekit_lite.ops._spec import parameters_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mergekit_lite.plan.types import Plan
    from mergekit_lite.sources import Model

Needs = Literal["nothing", "prompts", "texts"]
"""What every expert must have: nothing, `prompts`, or `prompts` or `data`."""


@dataclass(frozen=True)
class GateRequest:
    """What gates are to be made for.

    Attributes:
        plan: of the whole run; `plan.moe` says what the routed model is made of.
        models: the plan's inputs, opened: `base` and the experts by name.
        routers: name of each router's matrix in the output, by layer.
        experts: the routed experts in order, as `plan.moe["experts"]` has them.
        hidden: entries of a row.
        per_token: experts that a token passes.
        seed: of the recipe.
        texts: the folder from which the recipe's `data` files are named.
        folder: an empty folder for files that go into the output beside the weights, such as
            statistics that allow an expert to be added later.
        measure: runs texts; None where the method needs none.
        say: tells the user what is going on.
    """

    plan: Plan
    models: Mapping[str, Model]
    routers: Mapping[int, str]
    experts: tuple[Mapping[str, Any], ...]
    hidden: int
    per_token: int
    seed: int
    texts: Path
    folder: Path
    measure: Measure | None = None
    say: Callable[[str], object] = print

    def measured(self) -> Measure:
        """Return what runs texts.

        Raises:
            MergekitLiteError: there is nothing that does.
        """
        if self.measure is None:
            raise MergekitLiteError("these gates are made from texts, and nothing here runs texts")
        return self.measure


@dataclass(frozen=True)
class Gates:
    """What a method has made.

    Attributes:
        rows: layer -> fp32 matrix (experts x hidden).
        facts: what the manifest says of how they were made; plain data without paths.
        orders: of a carved model, layer -> the neuron that stands at each place.
        biases: layer -> what counts in the choice of each expert alone; none are zeros.
        named: tensors of the output by name, where a router is more than one matrix.
    """

    rows: Mapping[int, NDArray[np.float32]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    orders: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
    biases: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
    named: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


Make = Callable[..., Gates]


@dataclass(frozen=True)
class GateSpec:
    """All that is known about a method."""

    name: str
    title: str
    needs: Needs
    summary: str
    make: Make
    parameters: Mapping[str, Parameter]
    routes: bool = True  # tokens go to experts for a reason
    biased: bool = False  # makes biases of the choice too
    alone: bool = False  # runs texts through each expert alone

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
        return found

    def arguments(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters as the function spells them (`lambda` as `lambda_`)."""
        return {f"{key}_" if key == "lambda" else key: value for key, value in params.items()}


GATES: dict[str, GateSpec] = {}


def gate(
    title: str,
    needs: Needs = "nothing",
    *,
    routes: bool = True,
    biased: bool = False,
    alone: bool = False,
) -> Callable[[Make], Make]:
    """Register `f(request, *, ...) -> Gates` under its own name.

    Args:
        title: a few words.
        needs: what every expert must have.
        routes: whether tokens are sent to experts for a reason.
        biased: whether it makes biases of the choice too, so that only routers that have one can
            take it.
        alone: whether it runs texts through each expert alone, whatever its parameters are.
    """

    def decorate(function: Make) -> Make:
        text = getdoc(function) or ""
        name = function.__name__.rstrip("_")
        GATES[name] = GateSpec(
            name,
            title,
            needs,
            re.split(r"(?<=\.)\s", text, maxsplit=1)[0].replace("\n", " "),
            function,
            parameters_of(function)[0],
            routes,
            biased,
            alone,
        )
        return function

    return decorate
