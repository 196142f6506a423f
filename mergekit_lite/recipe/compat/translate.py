"""A whole mergekit recipe, read into the tree of one of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mergekit_lite.errors import nearest
from mergekit_lite.ops import OpSpec
from mergekit_lite.recipe.compat.groups import BASE, Settled, Settler, by_model
from mergekit_lite.recipe.compat.inputs import Models
from mergekit_lite.recipe.compat.methods import METHODS, Method
from mergekit_lite.recipe.compat.modules import main_part, module_rules, ordered
from mergekit_lite.recipe.compat.nodes import listed, mapping, scalar
from mergekit_lite.recipe.compat.notes import Notes
from mergekit_lite.recipe.compat.output import output_of
from mergekit_lite.recipe.compat.reader import GroupReader, Part
from mergekit_lite.recipe.compat.references import Reference, References
from mergekit_lite.recipe.compat.stack import stack
from mergekit_lite.recipe.compat.steps import WEIGHT, rules_of, steps_of
from mergekit_lite.recipe.compat.vocabulary import VocabularyReader
from mergekit_lite.recipe.marks import Mark, Node, Problems, show

SHAPES = ("models", "slices", "modules")
KEYS = (
    "merge_method",
    *SHAPES,
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
)
"""What stands at the top of a mergekit recipe."""

OURS = ("schema_version", "seed", "allow_missing", "extra", "output")
"""Keys of our recipes that may stand beside them; mergekit reads past them."""


def is_theirs(override: str) -> bool:
    """Return whether a change on the command line is to a key of mergekit's."""
    return override.strip().partition("=")[0].partition(".")[0].strip() in KEYS


class Translator:
    """Reads one mergekit recipe.

    Args:
        root: its tree.
        folder: the recipe's folder.
        specs: the op registry.
        problems: where to note what is wrong.
        notes: where to note what was left out.
        stages: names of the other recipes of the same file.
    """

    def __init__(
        self,
        root: Node,
        folder: Path,
        specs: Mapping[str, OpSpec],
        problems: Problems,
        notes: Notes,
        stages: frozenset[str] = frozenset(),
    ) -> None:
        self.root = root
        self.specs = specs
        self.problems = problems
        self.notes = notes
        self.references = References(folder, problems, notes, stages)

    def translate(self) -> Node:
        """Return the recipe in our form; what cannot be read is noted and left out."""
        entries = self._entries()
        output = output_of(self.root, self.problems)
        base = self.references.read(entries["base_model"]) if "base_model" in entries else None
        method = self._method(entries.get("merge_method"))
        shape = self._shape(entries)
        if method is None or shape is None:
            return self._joined({}, output)
        name = str(entries["merge_method"].value)
        settler = Settler(name, method, self.problems, self.notes)
        settler.check(entries.get("parameters"))
        if method.base == "needed" and base is None:
            base = self._no_base(name, entries)
        reader = GroupReader(
            name, method, self.references, settler, self.problems, self.notes, base
        )
        parts = reader.parts(shape, entries[shape], [entries.get("parameters")])
        if reader.models is None or not any(part.groups for part in parts):
            return self._joined({}, output)
        recipe = self._recipe(method, parts, settler, reader.models)
        words = VocabularyReader(self.references, reader.models, self.problems).read(entries)
        return self._joined({**recipe, **words}, output)

    def _entries(self) -> dict[str, Node]:
        """Return mergekit's keys with a value; unknown ones are noted."""
        found = {}
        for key, node in self.root.entries().items():
            if key in KEYS:
                if node.value is not None:
                    found[key] = node
            elif key == "name":
                if not self.references.stages:
                    self.notes.add("`name` is left out: it names a recipe among several", node.key)
            elif key not in OURS:
                hint = nearest(key, (*KEYS, *OURS))
                if key in {name for method in METHODS.values() for name in method.settings}:
                    hint = f"write `parameters: {{{key}: {show(node.plain())}}}`"
                elif key == "random_seed":
                    hint = "here this is called `seed`"
                listed_keys = f"known here: {', '.join(f'`{known}`' for known in KEYS)}"
                self.problems.add(f"unknown key `{key}`", node.key, hint or listed_keys)
        return found

    def _method(self, node: Node | None) -> Method | None:
        known = ", ".join(METHODS)
        if node is None:
            hint = f"write `merge_method: ...`: {known}"
            self.problems.add("the recipe has no `merge_method`", self.root.mark, hint)
            return None
        method = METHODS.get(node.value) if isinstance(node.value, str) else None
        if method is None:
            what = f"unknown merge method `{show(node.plain())}`"
            hint = nearest(str(node.value), METHODS) or f"known are {known}"
            self.problems.add(what, node.mark, hint)
            return None
        lacking = [op for op in method.chain if op not in self.specs]
        if lacking:
            what = f"the merge method `{node.value}` is not supported by this version"
            self.problems.add(what, node.mark, "`mergekit-lite ops list` shows all that are")
            return None
        return method

    def _no_base(self, name: str, entries: Mapping[str, Node]) -> Reference:
        """Note that there is no base; return one to go on with, which no model is."""
        place = entries["merge_method"].key
        if "base_model" not in entries:
            what = f"`{name}` needs `base_model`: the model that all others were made from"
            self.problems.add(what, place, "add `base_model: ...`")
        return Reference("base_model", "", place, ("", ""))

    def _shape(self, entries: Mapping[str, Node]) -> str | None:
        given = [shape for shape in SHAPES if shape in entries]
        if len(given) == 1:
            return given[0]
        if not given:
            what = "the recipe names no models: it has neither `models`, `slices` nor `modules`"
            self.problems.add(what, self.root.mark, "write `models: [{model: ./a}, ...]`")
            return None
        what = f"the recipe has {' and '.join(f'`{shape}`' for shape in given)}"
        self.problems.add(what, entries[given[1]].key, "give exactly one of them")
        return None

    def _recipe(
        self, method: Method, parts: Sequence[Part], settler: Settler, models: Models
    ) -> dict[str, Node]:
        mark = self.root.mark
        settled = [[settler.settle(group) for group in part.groups] for part in parts]
        recipe: dict[str, Node] = {}
        rules: list[Node] = []
        weights: dict[str, Node] = {}
        if len(parts) == 1 and parts[0].sliced:
            made = stack(method, parts[0].groups, settled[0])
            recipe |= {"slices": made.slices, "steps": made.steps}
            rules = made.rules
            weights = by_model(settled[0][0], WEIGHT) if len(parts[0].groups) == 1 else {}
        elif len(parts) == 1:
            recipe["steps"] = steps_of(method, parts[0].groups[0], settled[0][0])
            rules = rules_of(settled[0][0], mark)
            weights = by_model(settled[0][0], WEIGHT)
        else:
            recipe["steps"], rules = self._modules(method, parts, settled)
        if self._in_steps(recipe["steps"]):
            weights = {}
        experts = {name: self._expert(models, name, weights.get(name)) for name in models.experts}
        recipe = {"base": models.base_node(), "experts": mapping(experts, mark), **recipe}
        if rules:
            recipe["rules"] = listed(rules, mark)
        if models.stages:
            recipe["stages"] = mapping(models.stages, mark)
        return recipe

    def _modules(
        self, method: Method, parts: Sequence[Part], settled: Sequence[Sequence[Settled]]
    ) -> tuple[Node, list[Node]]:
        """Return the chain and the rules of a recipe with several modules."""
        values = {
            part.module: found[0] for part, found in zip(parts, settled, strict=True) if found
        }
        for part in parts:
            if part.sliced:
                what = f"`slices` in the module `{part.module}` beside other modules"
                self.problems.add(
                    f"{what} is not supported by this version", part.mark, "write `models`"
                )
        rules: list[Node] = []
        main = main_part(parts)
        if main is None or not main.groups:
            take = mapping({"source": scalar(BASE, self.root.mark)}, self.root.mark)
            steps = listed([mapping({"take": take}, self.root.mark)], self.root.mark)
            what = "tensors of modules that are not listed are those of the base; mergekit"
            self.notes.add(f"{what} leaves them out", self.root.mark, warns=True)
        else:
            steps = steps_of(method, main.groups[0], values[main.module], weighs=True)
            rules += rules_of(values[main.module], main.mark)
        for part in ordered(parts):
            if part.groups:
                rules += module_rules(method, part, values[part.module])
        return steps, rules

    def _in_steps(self, steps: Node) -> bool:
        """Return whether the chain names the weights of its inputs itself."""
        return any(
            "weights" in op.entries() for step in steps.items() for op in step.entries().values()
        )

    def _expert(self, models: Models, name: str, weight: Node | None) -> Node:
        entry = models.expert(name)
        return entry if weight is None else entry.with_value({**entry.value, WEIGHT: weight})

    def _joined(self, recipe: dict[str, Node], output: Node | None) -> Node:
        """Return the recipe with what stands beside the merge itself."""
        mark: Mark = self.root.mark
        own = {key: node for key, node in self.root.entries().items() if key in OURS}
        given = own.pop("output", None)
        if given is not None or output is not None:
            stored = output.entries() if output else {}
            under = given.entries() if given else {}
            place = (given or output or self.root).mark
            recipe["output"] = mapping({**stored, **under}, place)
        return mapping({**recipe, **own, "compat": scalar("mergekit", mark)}, mark)
