"""`models`, `slices` and `modules` of a mergekit recipe, read into groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.compat.groups import Group, Input, Settler
from mergekit_lite.recipe.compat.inputs import BASE, Models
from mergekit_lite.recipe.compat.methods import Method
from mergekit_lite.recipe.compat.notes import Notes
from mergekit_lite.recipe.compat.references import Reference, References
from mergekit_lite.recipe.marks import Mark, Node, Problems, kind_of, show
from mergekit_lite.recipe.text import number

_MODEL = ("model", "parameters")
_SOURCE = ("model", "layer_range", "parameters")
_SLICE = ("sources", "base_model", "residual_weight", "parameters")
_MODULE = ("models", "slices", "parameters")
_FORM = {
    "models": "write `models: [{model: ./a, parameters: {weight: 0.5}}, ...]`",
    "slices": "write `slices: [{sources: [{model: ./a, layer_range: [0, 32]}]}]`",
    "sources": "write `sources: [{model: ./a, layer_range: [0, 32]}, ...]`",
    "modules": "write `modules: {NAME: {models: [...]}}`",
}


@dataclass(frozen=True)
class Part:
    """What a recipe makes of the tensors of one module.

    Attributes:
        module: name of the module, "" where the recipe speaks of no modules.
        groups: one for `models`, one for each entry of `slices`, bottom to top.
        sliced: the groups say which layers they take.
        mark: where the part stands.
    """

    module: str
    groups: tuple[Group, ...]
    sliced: bool
    mark: Mark


@dataclass
class GroupReader:
    """Reads the groups of one recipe.

    Attributes:
        method: what is done.
        references: reads the models' names.
        settler: checks their parameters.
        problems: where to note what is wrong.
        notes: where to note what was left out.
        base: `base_model`, None where there is none.
    """

    name: str
    method: Method
    references: References
    settler: Settler
    problems: Problems
    notes: Notes
    base: Reference | None
    models: Models | None = field(default=None)

    @property
    def _base_counts(self) -> bool:
        none = self.method.base == "origin" and self.base is None
        return self.method.base == "input" or none

    def parts(self, shape: str, node: Node, scopes: Sequence[Node | None]) -> list[Part]:
        """Return what the recipe makes, module by module; what cannot be read is noted."""
        if shape != "modules":
            groups = self._groups(shape, node, scopes)
            return [Part("", tuple(groups), shape == "slices", node.mark)]
        if not node.entries():
            self._misshapen("modules", node)
            return []
        return [
            part
            for key, entry in node.entries().items()
            for part in self._module(key, entry, scopes)
        ]

    def _module(self, name: str, node: Node, scopes: Sequence[Node | None]) -> list[Part]:
        entries = self._known(node, _MODULE, f"modules.{name}")
        given = [key for key in ("models", "slices") if key in entries]
        if len(given) != 1:
            both = "both `models` and `slices`" if given else "neither `models` nor `slices`"
            what = f"the module `{name}` has {both}"
            self.problems.add(what, node.mark, "give one of the two")
            return []
        own = entries.get("parameters")
        self.settler.check(own)
        groups = self._groups(given[0], entries[given[0]], [own, *scopes])
        return [Part(name, tuple(groups), given[0] == "slices", node.mark)]

    def _groups(self, shape: str, node: Node, scopes: Sequence[Node | None]) -> list[Group]:
        if not node.items():
            self._misshapen(shape, node)
            return []
        if shape == "models":
            inputs = self._inputs(node, _MODEL, sliced=False)
            if self.base is not None and not any(i.reference.same(self.base) for i in inputs):
                inputs.append(Input(BASE, self.base, None, self.base.mark))
            return self._checked(Group(tuple(inputs), tuple(scopes), node.mark, self._base_counts))
        return [group for item in node.items() for group in self._slice(item, scopes)]

    def _slice(self, node: Node, scopes: Sequence[Node | None]) -> list[Group]:
        entries = self._known(node, _SLICE, "slices")
        sources = entries.get("sources")
        if sources is None or not sources.items():
            self._misshapen("sources", sources or node)
            return []
        apart = self._apart(entries.get("base_model"))
        if apart is not None and apart.base is not None:
            rest = {key: entry for key, entry in entries.items() if key != "base_model"}
            groups = apart._slice(node.with_value(rest), scopes)
            if self.models is None:
                self.models = Models.around(self.base, apart.base)
            return [replace(group, models=apart.models) for group in groups]
        if (weight := entries.get("residual_weight")) is not None:
            self.notes.add(
                "`residual_weight` is left out, as mergekit does", weight.key, warns=True
            )
        own = entries.get("parameters")
        self.settler.check(own)
        inputs = self._inputs(sources, _SOURCE, sliced=True)
        counts = {item.layers[1] - item.layers[0] for item in inputs if item.layers}
        if len(counts) > 1:
            listed = ", ".join(f"`{i.reference.label}` {_range(i)}" for i in inputs)
            what = f"the sources of a slice have differing numbers of layers: {listed}"
            self.problems.add(what, sources.mark, "give each as many layers")
        return self._checked(Group(tuple(inputs), (own, *scopes), node.mark, self._base_counts))

    def _apart(self, node: Node | None) -> GroupReader | None:
        """Return the reader of a slice that has another base than the recipe, None for others."""
        own = self.references.read(node) if node is not None else None
        if node is None or own is None or own.same(self.base):
            return None
        if self.method.base == "input":
            what = "`base_model` of one slice is left out"
            self.notes.add(f"{what}: `{self.name}` takes no differences to it", node.key)
            return None
        return replace(self, base=own, models=None)

    def _inputs(self, node: Node, keys: Sequence[str], *, sliced: bool) -> list[Input]:
        found: list[Input] = []
        for item in node.items():
            owner = "sources" if sliced else "models"
            if not isinstance(item.value, dict):
                self._misshapen(owner, item)
                continue
            entries = self._known(item, keys, owner)
            if "model" not in entries:
                self.problems.add("this entry names no `model`", item.mark, _FORM[owner])
                continue
            reference = self.references.read(entries["model"])
            if reference is None:
                continue
            name = self._named(reference)
            if any(known.reference.same(reference) for known in found):
                what = f"`{reference.label}` is listed twice"
                self.problems.add(what, entries["model"].mark, "remove one of the two")
            layers = self._layers(item, entries.get("layer_range")) if sliced else None
            own = entries.get("parameters")
            self.settler.check(own, model=name, counts=self._base_counts)
            found.append(Input(name, reference, own, item.mark, layers))
        return found

    def _named(self, reference: Reference) -> str:
        if self.models is None:
            self.models = Models.around(self.base, reference)
        return self.models.name(reference)

    def _layers(self, item: Node, node: Node | None) -> tuple[int, int]:
        hint = "write `layer_range: [0, 32]`: the first layer, and the one after the last"
        bounds = [number(part.value) for part in node.items()] if node is not None else []
        if node is None:
            self.problems.add("this source has no `layer_range`", item.mark, hint)
        elif len(bounds) != 2 or not all(isinstance(bound, int) for bound in bounds):
            what = f"`layer_range` must be two whole numbers, not `{show(node.plain())}`"
            self.problems.add(what, node.mark, hint)
        else:
            first, end = (int(bound or 0) for bound in bounds)
            if 0 <= first < end:
                return first, end
            what = f"`layer_range: [{first}, {end}]` holds no layers"
            self.problems.add(what, node.mark, hint)
        return 0, 1

    def _checked(self, group: Group) -> list[Group]:
        """Note a group that the method cannot take; return it where it can be worked on."""
        if not group.inputs:
            return []
        others = [item for item in group.inputs if item.name != BASE]
        own = group.base_counts
        count = len(group.merged)
        least, most = self.method.experts
        if self.method.base == "needed" and self.base and len(others) == len(group.inputs):
            what = f"`base_model` is not among the sources of this slice; `{self.name}` needs it"
            self.problems.add(what, group.mark, f"add `- {{model: {self.base.label}, ...}}`")
        if count < least or (most is not None and count > most):
            wanted = str(least) if least == most else f"at least {least}"
            wanted += f" model{'' if least == 1 else 's'}{'' if own else ' besides `base_model`'}"
            what = f"`{self.name}` takes {wanted}, here are {count}"
            hint = "remove `base_model`" if own and self.base and count > least else ""
            self.problems.add(what, group.mark, hint)
        return [group]

    def _known(self, node: Node, keys: Sequence[str], owner: str) -> dict[str, Node]:
        """Return the entries under known keys and note the others."""
        if not isinstance(node.value, dict):
            self._misshapen(owner, node)
            return {}
        result = {}
        for key, entry in node.entries().items():
            if key in keys:
                if entry.value is not None:
                    result[key] = entry
            elif key == "layer_range":
                what = "`layer_range` is left out, as mergekit does: it counts only in `slices`"
                self.notes.add(what, entry.key, warns=True)
            else:
                near = nearest(key, keys)
                if key in self.method.settings:
                    near = f"write `parameters: {{{key}: {show(entry.plain())}}}`"
                listed = f"known here: {', '.join(f'`{name}`' for name in keys)}"
                self.problems.add(f"unknown key `{key}` in `{owner}`", entry.key, near or listed)
        return result

    def _misshapen(self, owner: str, node: Node) -> None:
        what = f"`{owner}` is not what it should be: this is {kind_of(node.value)}"
        if node.value in ([], {}):
            what = f"`{owner}` is empty"
        self.problems.add(what, node.mark, _FORM.get(owner.partition(".")[0], ""))


def _range(item: Input) -> str:
    return f"{item.layers[0]}-{item.layers[1] - 1}" if item.layers else "all"
