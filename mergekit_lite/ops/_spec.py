"""From a typed function to everything that is known about an op.

An op is one pure function under `@transform` (delta -> delta of one expert), `@combine` (all
experts -> one), `@post` (merged delta -> merged delta) or `@preset` (a name for a chain). Its
keyword-only parameters are the recipe's parameters; the decorator states how far it reaches.
This module must stay importable without torch: `plan` and `schema` read specs only.
"""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

from mergekit_lite.errors import nearest
from mergekit_lite.ops._calibration import Wanted
from mergekit_lite.ops._parameters import Doc, ExpertName, Parameter, Range, Vector

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mergekit_lite.ops._place import Sums

__all__ = ["Doc", "ExpertName", "OpSpec", "Parameter", "Range", "Vector"]

Kind = Literal["transform", "combine", "post", "preset"]
Reach = Literal["element", "row", "tensor", "layer", "model"]
"""How much of the data one call must see: any tile, whole rows (a tile's last dimension is the
tensor's; a 1-D tensor is one row), a whole tensor in its shape, a layer, a model."""
Space = Literal["delta", "weight"]
"""Whether a combine works on `expert - base` or on whole weights."""

Blend = Callable[[Mapping[str, Any], Sequence[float], "Sums"], Sequence[float]]
"""(parameters, weights of the experts, inner products of the inputs) -> fp32 factors of a sum."""
BlendEach = Callable[
    [Mapping[str, Any], Sequence[float], "NDArray[np.float64]"], "NDArray[np.float32]"
]
"""The same for many vectors at once: (vectors, inputs, inputs) -> factors as (vectors, inputs)."""

SPECIAL = frozenset(
    {"place", "weights", "names", "cut", "sums", "found", "calibration", "base", "deltas"}
)
"""Keyword-only names that the engine fills in; they are not recipe parameters.

`names` are the inputs' names in order, `found` the answers of all statistics that the op declares,
`base` is the base tensor, `deltas` are all experts' deltas as they entered the row, before any
transform; a post asks for them.
"""
StandIn = tuple[str, Mapping[str, Any]]
"""An op and its parameters, in place of another; no name where nothing is to be done."""

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class OpSpec:
    """All that the other rooms know about an op."""

    name: str
    kind: Kind
    function: Callable[..., Any]
    title: str
    paper: str
    summary: str  # first sentence of the docstring
    doc: str
    parameters: Mapping[str, Parameter]
    specials: frozenset[str]
    vectors: tuple[Vector, ...]
    reach: Reach = "element"
    space: Space = "delta"
    experts: tuple[int, int | None] = (1, None)  # how many it takes; None is "no upper limit"
    commutative: bool = False
    idempotent: bool = False  # equal inputs with equal weights give that input back
    base_fills: bool = False  # with one input too few, the base is the first input
    structural: bool = False  # decided by the plan from names alone; computes nothing
    random: bool = False
    unbiased: bool = False
    needs: Any = None  # a Statistic (mergekit_lite.ops._statistics), a tuple of them, or None
    reads_all: bool = False  # a combine that names an expert and reads the others too
    # (parameters, answers of its whole-model statistics) -> what merge_report.json says of them
    reports: Callable[[Mapping[str, Any], tuple[Any, ...]], Mapping[str, Any]] | None = None
    calibration: bool = False  # reads statistic files, named by its parameter `file`
    # (parameters, shape) -> what it wants of a tensor's statistic; not set: any shape will do
    statistic: Callable[[Mapping[str, Any], Sequence[int]], Wanted | None] | None = None
    # (parameters, inputs) -> what stands in for it where no file has a tensor's statistic
    without: Callable[[Mapping[str, Any], int], StandIn] | None = None
    # whether statistics are divided by the norm of their file as a whole
    unit_norm: Callable[[Mapping[str, Any]], bool] | None = None
    compat: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # mode -> other defaults
    reach_of: Callable[[Mapping[str, Any]], Reach] | None = None
    shaped: Callable[[Mapping[str, Any], Sequence[int]], Mapping[str, Any]] | None = None
    instead: Callable[[Mapping[str, Any], Sequence[int], str, int], StandIn | None] | None = None
    workspace: Callable[[Mapping[str, Any], Sequence[int], int], int] | None = None
    # (parameters, shape, inputs) -> floating-point operations, where they are many for each entry
    work: Callable[[Mapping[str, Any], Sequence[int], int], float] | None = None
    check: Callable[[Mapping[str, Any]], Iterable[str]] | None = None
    blend: Blend | None = None  # the op is the sum of its inputs times what this returns
    # the same for each row, or each column, where its parameters say that these are the vectors
    blend_each: BlendEach | None = None
    aliases: tuple[str, ...] = ()  # other names that recipes and `ops show` understand

    def space_for(self, params: Mapping[str, Any]) -> Space:
        """Return what a combine works on with these parameters: a `space` among them decides."""
        return params["space"] if "space" in self.parameters and "space" in params else self.space

    @property
    def statistics(self) -> tuple[Any, ...]:
        """Every statistic it declares, in order."""
        if isinstance(self.needs, tuple):
            return self.needs
        return () if self.needs is None else (self.needs,)

    @property
    def choosers(self) -> tuple[str, ...]:
        """The parameters that name the one input it reads."""
        named = (name for name, parameter in self.parameters.items() if parameter.expert_name)
        return () if self.reads_all else tuple(named)

    def reach_for(self, params: Mapping[str, Any]) -> Reach:
        """Return the reach with these parameters; it is never wider than `reach`."""
        return self.reach_of(params) if self.reach_of else self.reach

    def params_for(self, params: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        """Return the parameters for a tensor of this shape (1-D tensors are often spared).

        Applying it twice changes nothing, so every caller that knows the shape may apply it.
        """
        return self.shaped(params, shape) if self.shaped else params

    def stand_in(
        self, params: Mapping[str, Any], shape: Sequence[int], role: str, inputs: int
    ) -> StandIn | None:
        """Return the narrower op that gives the same on a tensor that this one does not treat.

        None where this op is to run. A matrix method so leaves norms and embeddings to a sum that
        needs no whole tensors.

        Args:
            params: with all defaults.
            shape, role: of the tensor.
            inputs: number of the combine's inputs.
        """
        return self.instead(params, shape, role, inputs) if self.instead else None

    def workspace_bytes(self, params: Mapping[str, Any], shape: Sequence[int], inputs: int) -> int:
        """Return the bytes a call needs beside its inputs and its result, on whole tensors."""
        return self.workspace(params, shape, inputs) if self.workspace else 0

    def reads(self, params: Mapping[str, Any], experts: Sequence[str]) -> tuple[str, ...]:
        """Return the names whose tensors a combine takes in, in order; `base` may be among them.

        A parameter that names an expert reads that one alone; a map of weights reads the experts
        it names, the base first; else all experts are read.
        """
        for name in self.choosers:
            if self.kind == "combine" and params.get(name) is not None:
                return (str(params[name]),)
        weights = params.get("weights")
        names = tuple(experts)
        if isinstance(weights, Mapping):
            names = tuple(name for name in ("base", *experts) if name in weights)
        fill = self.base_fills and len(names) + 1 == self.experts[1]
        return ("base", *names) if fill and "base" not in names else names

    def arguments(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the recipe's parameters as the function spells them (`lambda` as `lambda_`)."""
        return {
            f"{name}_" if keyword.iskeyword(name) else name: value
            for name, value in params.items()
            if name in self.parameters
        }

    def problems(self, params: Mapping[str, Any]) -> list[str]:
        """Return all that is wrong with plain parameter values, in words; empty if nothing is.

        `weights` is looked at only by the op's own check, when it is a list of numbers.
        """
        found = []
        for name, value in params.items():
            if name not in self.parameters:
                if name not in SPECIAL:
                    hint = nearest(name, self.parameters)
                    found.append(f"`{self.name}` has no parameter `{name}`; {hint}".rstrip("; "))
                continue
            parameter = self.parameters[name]
            by_expert = parameter.per_expert and isinstance(value, Mapping)
            for each in value.values() if by_expert else (value,):
                if wrong := parameter.problem(each):
                    found.append(f"`{self.name}.{name}` {wrong}")
        for name, parameter in self.parameters.items():
            if parameter.required and name not in params:
                found.append(f"`{self.name}` needs `{name}`: {parameter.doc}")
        if not found and self.check is not None:
            found.extend(self.check({**self.defaults(), **params}))
        return found

    def defaults(self, compat: str = "none") -> dict[str, Any]:
        """Return the parameter values in force where the recipe says nothing."""
        values = {p.name: p.default for p in self.parameters.values() if not p.required}
        return {**values, **self.compat.get(compat, {})}


def parameters_of(
    function: Callable[..., Any],
) -> tuple[dict[str, Parameter], frozenset[str]]:
    """Return the recipe's parameters of a function, and the names that the engine fills in."""
    found: dict[str, Parameter] = {}
    specials = set()
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if parameter.name in SPECIAL:
            specials.add(parameter.name)
            continue
        annotation = parameter.annotation
        if isinstance(annotation, str):
            annotation = eval(annotation, function.__globals__)
        extras: tuple[Any, ...] = ()
        if get_origin(annotation) is Annotated:
            annotation, *rest = get_args(annotation)
            extras = tuple(rest)
        # `lambda` is a Python keyword: the function spells it `lambda_`, the recipe `lambda`.
        name = parameter.name.rstrip("_")
        found[name] = Parameter(
            name=name,
            type=annotation,
            default=parameter.default,
            range=next((x for x in extras if isinstance(x, Range)), None),
            doc=next((x.text for x in extras if isinstance(x, Doc)), ""),
            per_expert="per_expert" in extras,
            expert_name=ExpertName in (get_args(annotation) or (annotation,)),
        )
    return found, frozenset(specials)


REGISTRY: dict[str, OpSpec] = {}


def _register(kind: Kind, name: str | None = None, **facts: Any) -> Callable[[Function], Function]:
    def decorate(function: Function) -> Function:
        parameters, specials = parameters_of(function)
        doc = inspect.getdoc(function) or ""
        spec = OpSpec(
            name=(name or function.__name__).rstrip("_"),
            kind=kind,
            function=function,
            summary=re.split(r"(?<=\.)\s", doc, maxsplit=1)[0].replace("\n", " "),
            doc=doc,
            parameters=parameters,
            specials=specials,
            vectors=tuple(facts.pop("vectors", ())),
            **facts,
        )
        if spec.name in REGISTRY and REGISTRY[spec.name].function.__module__ != function.__module__:
            raise ValueError(f"two ops are called `{spec.name}`")
        REGISTRY[spec.name] = spec
        function.spec = spec  # type: ignore[attr-defined]
        return function

    return decorate


def transform(**facts: Any) -> Callable[[Function], Function]:
    """Register `f(delta, *, ...) -> delta`, applied to each expert's delta on its own."""
    return _register("transform", **facts)


def combine(**facts: Any) -> Callable[[Function], Function]:
    """Register `f(inputs, *, weights, ...) -> tensor`, one tensor out of all experts."""
    return _register("combine", **facts)


def post(**facts: Any) -> Callable[[Function], Function]:
    """Register `f(merged, *, ...) -> merged`, applied to the merged delta."""
    return _register("post", **facts)


def preset(**facts: Any) -> Callable[[Function], Function]:
    """Register a name for a chain: `f(*, ...) -> [(op name, parameters), ...]`."""
    return _register("preset", **facts)


def get(name: str) -> OpSpec:
    """Return the spec of the op called `name`, which may be one of its aliases.

    Raises:
        KeyError: no op has that name; the message names the nearest one.
    """
    from mergekit_lite.ops import registry

    specs = registry()
    known = canonical(name, specs)
    if known not in specs:
        raise KeyError(f"unknown op `{name}`; {nearest(name, names(specs))}".rstrip("; "))
    return specs[known]


def canonical(name: str, specs: Mapping[str, OpSpec]) -> str:
    """Return the name of the op that `name` is an alias of; any other name as it is."""
    if name in specs:
        return name
    return next((spec.name for spec in specs.values() if name in spec.aliases), name)


def names(specs: Mapping[str, OpSpec]) -> list[str]:
    """Return every name that a recipe may write: of the ops, and their aliases."""
    return [*specs, *(alias for spec in specs.values() for alias in spec.aliases)]
