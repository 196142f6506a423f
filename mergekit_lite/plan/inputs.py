"""What each input has to offer for a tensor of the base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mergekit_lite.checkpoint import FLOAT_DTYPES, TensorInfo
from mergekit_lite.checkpoint.lora_place import on_base
from mergekit_lite.errors import Problem
from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.names import Prefix
from mergekit_lite.plan.patches import held_by
from mergekit_lite.plan.types import Gather, Input, Read
from mergekit_lite.recipe.renames import in_scope
from mergekit_lite.recipe.schema import Recipe
from mergekit_lite.sources import Model


def shape_text(shape: tuple[int, ...]) -> str:
    """Return `4096x11008`; a scalar is `()`."""
    return "x".join(map(str, shape)) or "()"


RowCheck = Callable[[str, str], bool]
"""Takes a tensor's name and its shapes in words; notes what is wrong with an expert's rows for
tokens and returns whether they may be merged with the base's as they stand."""


@dataclass(frozen=True)
class Mapped:
    """How an input shows the rows of the result's vocabulary.

    Attributes:
        key: of its map in `Plan.row_maps`.
        delta_key: of the map of an adapter's differences.
        rows: of the result.
        names: tensors that have a row for each token.
        others: inputs that lend it rows, in the order of the map's further parts.
        averages: the map makes rows of several.
    """

    key: str
    delta_key: str
    rows: int
    names: frozenset[str]
    others: tuple[View, ...]
    averages: bool


@dataclass
class View:
    """One input of a merge, seen through the base's names.

    Attributes:
        name: key into `Plan.inputs`.
        model: the resolved source.
        base: tensors of the output in which it may have a part, in the shapes that the result has:
            the base's, or of its slices.
        is_base: the input is the base itself, under whatever name.
        settled: a problem of the whole model has been noted, so tensors are not checked one by one.
        renamed: base name -> the expert's tensor that stands for it (the embedding of a tied head).
        left_out: its tensors that the base lacks and that need no further mention.
        sizes: in which sizes its config differs from the base's, in words.
        aligned: output name -> the name in the base's terms that stands there, where slices give
            layers other numbers; "" where it has no layer.
        scope: patterns of the tensors in which it has a part; all where there are none.
        named: the recipe renames its tensors.
        prefixes: changes of prefix by which its names were matched.
        pieced: how tensors are read that it stores in another layout.
        spare: its tensors in layers from which slices choose.
        stack: of the base, the stack of layers from which slices choose.
        used: rows that read it.
        weighted: rows in which the weight that the recipe gives it counts.
        mapped: how its rows become the result's, where its vocabulary is another.
        changes: entries that the result's config.json changes (of the base only).
        check_rows: asked whether its rows for tokens fit the base's, where no rule says how.
    """

    name: str
    model: Model
    base: Mapping[str, TensorInfo]
    is_base: bool = False
    settled: bool = False
    renamed: dict[str, str] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)
    sizes: str = ""
    aligned: dict[str, str] = field(default_factory=dict)
    scope: tuple[str, ...] = ()
    named: bool = False
    prefixes: list[Prefix] = field(default_factory=list)
    pieced: dict[str, Read] = field(default_factory=dict)
    spare: set[str] = field(default_factory=set)
    stack: str | None = None
    used: int = 0
    weighted: int = 0
    mapped: Mapped | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    check_rows: RowCheck | None = None

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Its tensors by the names that the base has for them; each knows its stored name."""
        return self.model.header.tensors

    def in_scope(self, name: str) -> bool:
        """Return whether it has a part in a tensor of the base."""
        return not self.scope or in_scope(name, self.scope)

    def own(self, name: str) -> str:
        """Return the name in the base's terms that stands for an output name in this input."""
        return self.aligned.get(name, name)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape it has for a tensor, None where it has nothing to say."""
        stored = self.stored_shape(name)
        if stored is None or self.mapped is None or name not in self.mapped.names:
            return stored
        return (self.mapped.rows, *stored[1:])

    def stored_shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape as it is stored, whatever vocabulary the result has."""
        name = self.own(name)
        if self.model.adapter is not None:
            adapter = self.model.adapter
            known = name in adapter.factors or name in adapter.replaced
            return adapter.shape(name) if known else None
        info = self.tensors.get(self.renamed.get(name, name))
        return info.shape if info else None

    def dtype(self, name: str) -> str | None:
        """Return the dtype it stores for a tensor, None where it has no whole tensor."""
        name = self.own(name)
        if self.model.adapter is not None:
            stored = self.model.adapter.replaced.get(name)
        else:
            stored = self.renamed.get(name, name)
        info = self.tensors.get(stored) if stored is not None else None
        return info.dtype if info else None

    def covers(self, name: str) -> bool:
        """Return whether it says anything about a base tensor; an adapter need not."""
        return self.shape(name) is not None

    def read(self, name: str) -> Read:
        """Return how a base tensor is read from it; a tensor that it may lack is `zero`."""
        own = self.stored_read(name)
        if own.zero or self.mapped is None or name not in self.mapped.names:
            return own
        return self._gathered(own, name, self.mapped)

    def _gathered(self, own: Read, name: str, mapped: Mapped) -> Read:
        if own.lora is not None and own.lora.is_delta:
            gather = Gather(mapped.delta_key, (own,), "F32")
            return replace(own, gather=gather)
        parts = (own, *(other.stored_read(name) for other in mapped.others))
        dtypes = {other.dtype(name) for other in (self, *mapped.others)}
        computed = mapped.averages or any(part.lora or part.made for part in parts)
        dtype = "F32" if computed or len(dtypes) > 1 else dtypes.pop() or "F32"
        nbytes = sum(part.nbytes for part in parts)
        return replace(own, gather=Gather(mapped.key, parts, dtype), nbytes=nbytes)

    def stored_read(self, name: str) -> Read:
        """Return how the stored tensor is read, whatever vocabulary the result has."""
        if self.is_base and self.name != "base":
            return Read(self.name, name, zero=True)
        name = self.own(name)
        adapter = self.model.adapter
        if adapter is not None and name in adapter.factors:
            factors = adapter.factors[name]
            nbytes = sum(self.tensors[part].nbytes for part in factors.names)
            held = held_by(adapter, factors)
            return Read(self.name, name, lora=factors, nbytes=nbytes, held=held)
        stored = self.renamed.get(name, name)
        if adapter is not None:
            stored = adapter.replaced.get(name, "")
        if stored not in self.tensors:
            return Read(self.name, "", zero=True)
        info = self.tensors[stored]
        if stored in self.pieced:
            return self.pieced[stored]
        return Read(self.name, info.name, nbytes=info.nbytes, made=info.is_made, held=info.held)


def views(recipe: Recipe, models: Mapping[str, Model]) -> dict[str, View]:
    """Return the base and every expert that was found, as views of the base's names."""
    base = models["base"]
    names = base.header.tensors
    result = {"base": View("base", base, names, is_base=True)}
    for name in recipe.experts:
        if name in models:
            model = _on_base(models[name], base)
            same = model.adapter is None and _same_model(model, base)
            result[name] = View(name, model, names, is_base=same)
    return result


def _on_base(model: Model, base: Model) -> Model:
    """Return an adapter with the base's name for each of its factors; anything else as it is."""
    if model.adapter is None:
        return model
    family = configs.model_type(base.config)
    return replace(model, adapter=on_base(model.adapter, base.header.tensors, family))


def _same_model(left: Model, right: Model) -> bool:
    same_place = left.root == right.root or left.root.resolve() == right.root.resolve()
    return same_place and left.stage == right.stage


def check_repeats(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> None:
    """Warn of experts that are the base, or each other."""
    seen: dict[tuple[Path, str, str], str] = {}
    for name, view in found.items():
        if name == "base":
            continue
        where = recipe.at("experts", name)
        if view.is_base:
            findings.warn(f"expert `{name}` is the base: its delta is zero", where)
        root = view.model.root.resolve(), view.model.stage, view.model.task
        if root in seen and not recipe.slices:
            findings.warn(f"experts `{seen[root]}` and `{name}` are the same model", where)
        seen.setdefault(root, name)


def check_tensor(view: View, info: TensorInfo, recipe: Recipe, findings: Findings) -> bool:
    """Note what keeps a tensor of an expert from being merged; return whether nothing does."""
    if view.settled or view.is_base:
        return not view.settled
    where = recipe.at("experts", view.name)
    shape = view.shape(info.name)
    if shape is None:
        return _may_lack(view, info, recipe, findings)
    fits = shape == info.shape
    if view.check_rows is not None and (fits or shape[1:] == info.shape[1:]):
        shapes = "" if fits else f" {shape_text(shape)} (base {shape_text(info.shape)})"
        if not view.check_rows(info.name, shapes):
            return False
    if not fits:
        _wrong_shape(view, info, shape, recipe, findings)
        return False
    dtype = view.dtype(info.name)
    if dtype is not None and (dtype in FLOAT_DTYPES) != (info.dtype in FLOAT_DTYPES):
        findings.problem_with(
            f"`{info.name}` {dtype} (base {info.dtype})",
            f"expert `{view.name}` stores other kinds of numbers than the base",
            where,
            "one of the two is quantised or damaged: use the 16-bit checkpoint",
        )
        return False
    if dtype == "F64":
        findings.warn_of(f"`{info.name}`", f"`{view.name}` has F64 tensors, computed in fp32")
    return True


def _may_lack(view: View, info: TensorInfo, recipe: Recipe, findings: Findings) -> bool:
    if view.model.adapter is not None or info.name not in view.base:
        return True
    if any(fnmatchcase(info.name, pattern) for pattern in recipe.allow_missing):
        return True
    findings.problem_with(
        f"`{info.name}`",
        f"expert `{view.name}` lacks tensors that the base has",
        recipe.at("experts", view.name),
        _about_missing(view),
    )
    return False


def _about_missing(view: View) -> str:
    begin = view.prefixes[0].add.rstrip(".") if view.prefixes else ""
    if begin:
        return (
            f"if it is meant for a part of the base, write `scope: {begin}` for it; it then leaves"
            " all else as in the base"
        )
    return (
        "if that is meant, list patterns of them under `allow_missing`; the expert then leaves"
        " them as in the base"
    )


def _wrong_shape(
    view: View, info: TensorInfo, shape: tuple[int, ...], recipe: Recipe, findings: Findings
) -> None:
    sizes = f" ({view.sizes})" if view.sizes else ""
    findings.problem_with(
        f"`{info.name}` {shape_text(shape)} (base {shape_text(info.shape)})",
        f"expert `{view.name}` has other shapes than the base{sizes}",
        recipe.at("experts", view.name),
        "only models of one architecture and size can be merged",
    )


def plan_inputs(recipe: Recipe, found: Mapping[str, View]) -> dict[str, Input]:
    """Return the inputs of a plan: where they are and how far they cover the base's names."""
    result = {}
    for name, view in found.items():
        model = view.model
        names = view.base
        matched = [n for n in names if view.covers(n)]
        lacking = () if model.adapter is not None else tuple(n for n in names if not view.covers(n))
        result[name] = Input(
            reference=model.reference,
            root=str(model.root),
            kind=model.kind,
            revision=model.plan.content_digest() if model.plan else model.revision or "",
            quantization=quantization_text(model),
            stage=model.stage,
            files=dict(model.header.files),
            matched=len(matched),
            missing=lacking,
            extra=tuple(extra_names(view)),
        )
    return result


def quantization_text(model: Model) -> str:
    """Return how a quantised model is read, nothing for a plain one."""
    dtypes = {info.dtype for info in model.header.tensors.values() if info.coded is not None}
    return f"{model.quantization}, dequantised to {' and '.join(sorted(dtypes))}" if dtypes else ""


def extra_names(view: View) -> list[str]:
    """Return what an expert has and the base has not."""
    adapter = view.model.adapter
    own = [*adapter.factors, *adapter.replaced] if adapter is not None else list(view.tensors)
    stand_ins = set(view.renamed.values())
    known = view.base.keys() | stand_ins | view.spare
    return [name for name in own if name not in known]


def placed(problems: tuple[Problem, ...], where: str) -> list[Problem]:
    """Return problems with the place in the recipe that led to them."""
    return [p if p.where else replace(p, where=where) for p in problems]
