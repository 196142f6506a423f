"""The chain, the rules and the models of a recipe, out of the parts that it was read into."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from mergekit_lite.recipe.compat.groups import Group, Input, Settled, Settler, by_model
from mergekit_lite.recipe.compat.inputs import BASE, Models
from mergekit_lite.recipe.compat.methods import METHODS, Method
from mergekit_lite.recipe.compat.modules import main_part, module_rules, ordered, patterns
from mergekit_lite.recipe.compat.nodes import listed, mapping, scalar
from mergekit_lite.recipe.compat.notes import Notes
from mergekit_lite.recipe.compat.reader import Part
from mergekit_lite.recipe.compat.references import Reference
from mergekit_lite.recipe.compat.stack import Slab, stack
from mergekit_lite.recipe.compat.steps import WEIGHT, rules_of, steps_of
from mergekit_lite.recipe.marks import Mark, Node, Problems


@dataclass
class _Made:
    """What becomes of the parts of a recipe: its keys, its rules, and weights of its experts."""

    keys: dict[str, Node]
    rules: list[Node] = field(default_factory=list)
    weights: dict[str, Node] = field(default_factory=dict)


@dataclass(frozen=True)
class Assembler:
    """Puts the parts of one recipe together.

    What has a base of its own, or must not meet the rules of the rest, becomes a stage.

    Attributes:
        method: what is done.
        settler: reads the parameters of groups.
        mark: where the recipe stands.
        problems: where to note what is wrong.
        notes: where to note what was left out.
        label: what the names of stages begin with.
        taken: names that no stage may have.
    """

    method: Method
    settler: Settler
    mark: Mark
    problems: Problems
    notes: Notes
    label: str = ""
    taken: Collection[str] = ()

    def recipe(self, parts: Sequence[Part], models: Models) -> dict[str, Node]:
        """Return the recipe that the parts make of the models."""
        main = main_part(parts) if len(parts) > 1 else parts[0]
        if main is not None and main.sliced and main.groups:
            made = self._stacked(main, models)
            made.rules += self._beside(parts, main, models)
        elif len(parts) == 1:
            settled = self.settler.settle(parts[0].groups[0])
            steps = steps_of(self.method, parts[0].groups[0], settled)
            rules = rules_of(settled, self.mark)
            made = _Made({"steps": steps}, rules, by_model(settled, WEIGHT))
        else:
            made = self._modules(parts, main)
        weights = {} if _names_weights(made.keys["steps"]) else made.weights
        experts = {name: _expert(models, name, weights.get(name)) for name in models.experts}
        recipe = {"base": models.base_node(), "experts": mapping(experts, self.mark), **made.keys}
        if made.rules:
            recipe["rules"] = listed(made.rules, self.mark)
        if models.stages:
            recipe["stages"] = mapping(models.stages, self.mark)
        return recipe

    def _stacked(self, part: Part, models: Models) -> _Made:
        slabs = []
        for number, group in enumerate(part.groups, start=1):
            if group.models is None:
                slabs.append(Slab(self.method, group, self.settler.settle(group)))
            else:
                slabs.append(self._slab_apart(f"slice-{number}", group, group.models, models))
        made = stack(slabs)
        alone = by_model(slabs[0].settled, WEIGHT) if len(slabs) == 1 else {}
        return _Made({"slices": made.slices, "steps": made.steps}, made.rules, alone)

    def _slab_apart(self, label: str, group: Group, own: Models, models: Models) -> Slab:
        """Return a slice whose layers are those of a stage, which merges them onto its own base."""
        part = Part("", (replace(group, models=None),), sliced=True, mark=group.mark)
        name = self._stage(label, part, own, models)
        first, end = group.inputs[0].layers or (0, 0)
        only = Input(name, models.experts[name], None, group.mark, (0, end - first))
        return Slab(METHODS["passthrough"], Group((only,), (), group.mark), Settled())

    def _beside(self, parts: Sequence[Part], main: Part, models: Models) -> list[Node]:
        """Return the rules for modules beside the one whose layers are stacked."""
        rules: list[Node] = []
        if len(parts) == 1:
            return rules
        for part in ordered(parts):
            if not part.groups or self._sliced(part):
                continue
            names = {item.name for item in part.groups[0].inputs} - {BASE}
            own = Models(models.base, {n: r for n, r in models.experts.items() if n in names})
            name = self._stage(part.module, part, own, models)
            for pattern in patterns(part.module):
                body = {"match": scalar(pattern, part.mark), "take": scalar(name, part.mark)}
                rules.append(mapping(body, part.mark))
        stacked = [group for group in main.groups if group.models is None]
        models.keep({item.name for group in stacked for item in group.inputs})
        return rules

    def _stage(self, label: str, part: Part, own: Models, models: Models) -> str:
        """Add a stage that merges one part, and the expert that it is; return the expert's name."""
        name = next(name for name in _spellings(f"{self.label}{label}") if self._free(name, models))
        recipe = self.recipe([part], own)
        inner = recipe.pop("stages", None)
        for key, node in inner.entries().items() if inner is not None else ():
            if key in models.stages and models.stages[key].plain() != node.plain():
                what = f"two models with adapters are called `{key}` here"
                self.problems.add(what, node.mark, "rename the folder of one of them")
            models.stages[key] = node
        models.experts[name] = Reference(f"@{name}", "", part.mark, (f"@{name}", ""))
        models.stages[name] = mapping(recipe, part.mark)
        return name

    def _free(self, name: str, models: Models) -> bool:
        return not (name in models.experts or name in models.stages or name in self.taken)

    def _sliced(self, part: Part) -> bool:
        """Note a module beside others that is sliced and is not the main one."""
        if part.sliced:
            what = f"`slices` in the module `{part.module}` beside other modules is not supported"
            self.problems.add(
                f"{what}: only layers of the main module, `text_decoder` or `default`, are stacked",
                part.mark,
                "write `models`",
            )
        return part.sliced

    def _modules(self, parts: Sequence[Part], main: Part | None) -> _Made:
        """Return the chain and the rules of a recipe with several modules, none of them sliced."""
        values = {part.module: self.settler.settle(part.groups[0]) for part in parts if part.groups}
        sides = [part for part in ordered(parts) if part.groups and not self._sliced(part)]
        rules: list[Node] = []
        if main is None or not main.groups:
            take = mapping({"source": scalar(BASE, self.mark)}, self.mark)
            steps = listed([mapping({"take": take}, self.mark)], self.mark)
            what = "tensors of modules that are not listed are those of the base; mergekit"
            self.notes.add(f"{what} leaves them out", self.mark, warns=True)
        else:
            steps = steps_of(self.method, main.groups[0], values[main.module], weighs=True)
            rules += rules_of(values[main.module], main.mark)
        for part in sides:
            rules += module_rules(self.method, part, values[part.module])
        return _Made({"steps": steps}, rules)


def _spellings(label: str) -> Iterable[str]:
    """Yield a name, and then others like it."""
    yield label
    yield from (f"{label}-{number}" for number in range(2, 10**6))


def _names_weights(steps: Node) -> bool:
    """Return whether a chain names the weights of its inputs itself."""
    return any(
        "weights" in op.entries() for step in steps.items() for op in step.entries().values()
    )


def _expert(models: Models, name: str, weight: Node | None) -> Node:
    entry = models.expert(name)
    return entry if weight is None else entry.with_value({**entry.value, WEIGHT: weight})
