"""A whole mergekit recipe, read into the tree of one of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mergekit_lite.errors import nearest
from mergekit_lite.ops import OpSpec
from mergekit_lite.recipe.compat.assemble import Assembler
from mergekit_lite.recipe.compat.groups import Settler
from mergekit_lite.recipe.compat.methods import METHODS, Method
from mergekit_lite.recipe.compat.nodes import mapping, scalar
from mergekit_lite.recipe.compat.notes import Notes
from mergekit_lite.recipe.compat.output import output_of
from mergekit_lite.recipe.compat.reader import GroupReader
from mergekit_lite.recipe.compat.recognise import SHAPES
from mergekit_lite.recipe.compat.references import Reference, References
from mergekit_lite.recipe.compat.vocabulary import VocabularyReader
from mergekit_lite.recipe.marks import Mark, Node, Problems, show

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
        method = self._method(entries.get("merge_method"))
        base = self._base(entries, method)
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
        mark, taken = self.root.mark, self.references.stages
        own = self.root.get("name")
        label = f"{own.value}-" if taken and own is not None and own.value else ""
        assembler = Assembler(method, settler, mark, self.problems, self.notes, label, taken)
        recipe = assembler.recipe(parts, reader.models)
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

    def _base(self, entries: Mapping[str, Node], method: Method | None) -> Reference | None:
        """Return the base: that of the first slice, where the slices alone have bases."""
        if "base_model" in entries:
            return self.references.read(entries["base_model"])
        if method is None or method.base == "input":
            return None
        slices = entries["slices"].items() if "slices" in entries else []
        own = [part.get("base_model") for part in slices if isinstance(part.value, dict)]
        named = [node for node in own if node is not None and node.value is not None]
        return self.references.read(named[0]) if named and len(named) == len(slices) else None

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
