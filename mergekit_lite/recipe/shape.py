"""From the tree of a recipe to the plain data that its models take, noting what is wrong.

Short forms are written out, unknown keys named with the place where they belong, chains and
values held against the op specs. Nothing stops at the first problem.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mergekit_lite.errors import nearest
from mergekit_lite.ops import OpSpec
from mergekit_lite.recipe.expect import ExpectReader
from mergekit_lite.recipe.lora_output import LoraReader
from mergekit_lite.recipe.marks import Mark, Node, Problems, kind_of, show
from mergekit_lite.recipe.moe import MoeReader
from mergekit_lite.recipe.order import Checker
from mergekit_lite.recipe.places import NOT_YET, TOP, belongs, keys_of
from mergekit_lite.recipe.quantised_output import read_quantize
from mergekit_lite.recipe.renames import renamer
from mergekit_lite.recipe.routers import read_routers
from mergekit_lite.recipe.rules import RuleReader
from mergekit_lite.recipe.schema import Expert, Output
from mergekit_lite.recipe.search import SearchReader
from mergekit_lite.recipe.slices import SliceReader
from mergekit_lite.recipe.stages import KEYS as STAGE_KEYS
from mergekit_lite.recipe.stages import SIGN, Stages
from mergekit_lite.recipe.steps import BASE, Chains, StepNode
from mergekit_lite.recipe.text import number
from mergekit_lite.recipe.tokens import TokenizerReader
from mergekit_lite.recipe.values import WEIGHT

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_RESERVED = {"base": "the base model", "default": "the other entries of a per-expert map"}


class Shaper:
    """Reads one recipe's tree."""

    def __init__(
        self,
        root: Node,
        specs: Mapping[str, OpSpec],
        problems: Problems,
        outer: Shaper | None = None,
        stage: str = "",
    ) -> None:
        self.root = root
        self.outer, self.stage = outer, stage
        self.stages: Stages = outer.stages if outer else Stages(root, problems)
        self.specs = specs
        self.problems = problems
        nodes = root.get("experts")
        self.experts = nodes.entries() if nodes else {}
        names = tuple(self.experts)
        compat = root.get("compat") or (outer.root.get("compat") if outer else None)
        mode = "mergekit" if compat is not None and compat.value == "mergekit" else "none"
        self.chains = Chains(specs, names, problems)
        self.checker = Checker(specs, names, mode, problems)

    def shape(self) -> dict[str, Any]:
        """Return plain data for `Recipe`; keys that cannot be read are left out."""
        owner, keys = (f"stages.{self.stage}", STAGE_KEYS) if self.outer else ("", TOP)
        entries = self.known(self.root, keys, owner)
        data = {key: node.plain() for key, node in entries.items() if node.value is not None}
        if "base" in entries:
            self._reference(entries["base"])
        lora = LoraReader(self)
        listed = lora.steps(entries)
        steps = self._steps(listed)
        combine = None
        if steps is not None and listed is not None:
            combine = self.checker.chain(steps, listed.mark)
        data["steps"] = [step.plain() for step in steps or ()]
        own: list[StepNode] = []
        if isinstance(data.get("experts"), dict):
            data["experts"] = {
                name: self._expert(name, node, combine, own) for name, node in self.experts.items()
            }
        stacked: list[StepNode] = []
        if isinstance(data.get("slices"), list):
            slices = SliceReader(self)
            data["slices"] = slices.read(entries["slices"].items())
            stacked = slices.steps
        if isinstance(data.get("rules"), list):
            reader = RuleReader(self, [*(steps or ()), *own, *stacked])
            data["rules"] = reader.read(entries["rules"].items())
        self._seed(entries.get("seed"))
        if isinstance(data.get("output"), dict):
            inner = self.known(entries["output"], keys_of(Output), "output")
            data["output"] = {name: node.plain() for name, node in inner.items()}
            if lora.node is not None:
                data["output"]["lora"] = lora.read()
            if "quantize" in inner:
                data["output"]["quantize"] = read_quantize(self, inner["quantize"])
        tokens = TokenizerReader(self.known, tuple(self.experts), self.problems)
        if "routers" in data:
            data["routers"] = read_routers(self, entries["routers"])
        if "moe" in data:
            data["moe"] = MoeReader(self).read(entries["moe"])
        if "tokenizer" in data:
            data["tokenizer"] = tokens.read(entries["tokenizer"])
        if "expect" in data:
            data["expect"] = ExpectReader(self).read(entries["expect"])
        if "search" in data:
            data["search"] = SearchReader(self).read(entries["search"])
        tokens.check(*(entries.get(key) for key in ("vocab", "tokenizer", "chat_template")))
        if self.outer:
            return self._as_stage(data)
        if "stages" in entries:
            data["stages"] = {n: self._stage(n, node) for n, node in self.stages.nodes.items()}
        self.stages.check()
        return data

    def _stage(self, name: str, node: Node) -> dict[str, Any]:
        if not _NAME.fullmatch(name):
            what = f"`{name}` is no name for a stage"
            self.problems.add(what, node.key, "use letters, digits and any of _ . + -")
        if not isinstance(node.value, dict):
            what = f"the stage `{name}` must be a recipe, not {kind_of(node.value)}"
            self.problems.add(what, node.mark, f"write `{name}: {{base: ..., steps: [...]}}`")
            return {}
        return Shaper(node, self.specs, self.problems, self, name).shape()

    def _as_stage(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return a stage's data with what it has from the recipe around it."""
        for key in ("seed", "compat"):
            around = self.outer.root.get(key) if self.outer else None
            if key not in data and around is not None:
                data[key] = around.plain()
        output = data.setdefault("output", {})
        if isinstance(output, dict):
            data["named"] = "dtype" in output
            output.setdefault("dtype", "float32")
        return data

    def known(self, node: Node, keys: list[str], owner: str) -> dict[str, Node]:
        """Return the entries under known keys and note the others, with where they belong."""
        result = {}
        for key, value in node.entries().items():
            path = f"{owner}.{key}" if owner else key
            if key in keys:
                result[key] = value
            elif path in NOT_YET:
                what = f"`{path}` ({NOT_YET[path]}) is not supported by this version"
                self.problems.add(what, value.key, "remove it")
            else:
                self._unknown(key, value.key, keys, owner)
        return result

    def _unknown(self, key: str, mark: Mark, keys: list[str], owner: str) -> None:
        near = nearest(key, keys)
        home = belongs(key, self.specs)
        listed = f"known here: {', '.join(f'`{name}`' for name in keys)}"
        inside = f" in `{owner}`" if owner else ""
        self.problems.add(f"unknown key `{key}`{inside}", mark, home or near or listed)

    def _reference(self, node: Node) -> None:
        if isinstance(node.value, str) and node.value.startswith(SIGN):
            self.stages.refer(node, self.stage)
        elif node.value == "":
            self.problems.add("the model's name is empty", node.mark, "name a folder or file")

    def _seed(self, node: Node | None) -> None:
        if node is not None and node.quoted and number(node.value) is not None:
            what = f"`seed` must be a whole number, not the text `{show(node.value)}`"
            self.problems.add(what, node.mark, "remove the quotes")

    def _steps(self, node: Node | None) -> list[StepNode] | None:
        slices = self.root.get("slices")
        moe = self.root.get("moe")
        output = self.root.get("output")
        alone = not self.experts and output is not None and output.get("quantize") is not None
        if node is None and (moe is not None or (slices is not None and slices.items()) or alone):
            return [StepNode("take", {"source": BASE}, self.root.mark, self.specs["take"], True)]
        if node is None and LoraReader(self).node is not None:
            spec = self.specs["task_arithmetic"]
            return [StepNode(spec.name, {}, self.root.mark, spec, True)]
        if node is None or node.value is None:
            mark = node.key if node else self.root.mark
            self.problems.add(
                f"the {f'stage `{self.stage}`' if self.outer else 'recipe'} has no `steps`",
                mark,
                "say what to do, for example `steps: [{ties: {density: 0.2}}]`",
            )
            return None
        return self.chains.read(node)

    def _expert(
        self, name: str, node: Node, combine: OpSpec | None, own: list[StepNode]
    ) -> dict[str, Any]:
        if name in _RESERVED:
            what = f"no expert can be called `{name}`: it means {_RESERVED[name]}"
            self.problems.add(what, node.key, "choose another name")
        elif not _NAME.fullmatch(name):
            what = f"`{name}` is no name for an expert"
            self.problems.add(what, node.key, "use letters, digits and any of _ . + -")
        where = str(node.key)
        if isinstance(node.value, str):
            self._reference(node)
            return {"model": node.value, "where": where}
        if not isinstance(node.value, dict):
            what = f"the expert `{name}` must be a model or a mapping, not {kind_of(node.value)}"
            self.problems.add(what, node.mark, f"write `{name}: {{model: ...}}`")
            return {"where": where}
        owner = f"experts.{name}"
        entries = self.known(node, keys_of(Expert), owner)
        data = {key: value.plain() for key, value in entries.items()}
        given = [key for key in ("model", "lora", "store") if key in entries]
        if len(given) != 1:
            listed = " and ".join(f"`{key}`" for key in given)
            both = f"has both {listed}" if given else "names no model"
            hint = "give `model: ...` or `lora: ...`" + (", not both" if given else "")
            self.problems.add(f"the expert `{name}` {both}", node.key, hint)
        for key in given:
            if key != "model" and str(entries[key].value).startswith(SIGN):
                kind = "an adapter" if key == "lora" else "a store"
                what = f"a stage gives a model, not {kind}: `{entries[key].value}`"
                self.problems.add(what, entries[key].mark, f"write `model:` in place of `{key}:`")
            self._reference(entries[key])
            if not isinstance(entries[key].value, str):
                kind = kind_of(entries[key].value)
                self.problems.add(
                    f"`{key}` of the expert `{name}` must be text, not {kind}", entries[key].mark
                )
                del data[key]
        data |= self._task(name, entries)
        if "rename" in entries:
            data["rename"] = self._rename(entries["rename"])
        data["weight"] = None
        if "weight" in entries:
            reader = self.chains.reader
            weight = replace(WEIGHT, name="weight")
            before = len(self.problems)
            value = reader.read(weight, entries["weight"], owner, maps=False)
            data["weight"] = value if len(self.problems) == before else None
        if "steps" in entries:
            read = self.chains.read(entries["steps"])
            self.checker.own(read, combine)
            own += read
            data["steps"] = [step.plain() for step in read]
        return {**data, "where": where}

    def _task(self, name: str, entries: Mapping[str, Node]) -> dict[str, str | None]:
        """Return the task of an expert that is one of a store: by default its own name."""
        node = entries.get("task")
        if node is not None and "store" not in entries:
            what = f"the expert `{name}` names a task and no store"
            self.problems.add(what, node.key, "give `store: ...` beside it")
        elif node is not None and not isinstance(node.value, str):
            what = f"`task` of the expert `{name}` must be text, not {kind_of(node.value)}"
            self.problems.add(what, node.mark, "`store list` tells the tasks of a store")
        elif "store" in entries:
            file = entries["store"].value
            if isinstance(file, str) and not file.endswith(".safetensors"):
                what = f"a store is a `.safetensors` file, `{file}` is none"
                self.problems.add(what, entries["store"].mark, "`store pack` makes stores")
            return {"task": name if node is None else node.value}
        return {"task": None}

    def _rename(self, node: Node) -> dict[str, Any]:
        example = "write `rename: {'transformer.h.*': 'model.layers.*'}`"
        if not isinstance(node.value, dict):
            what = f"`rename` must map names to names, not {kind_of(node.value)}"
            self.problems.add(what, node.mark, example)
            return {}
        rules: dict[str, Any] = {}
        for pattern, to in node.value.items():
            if not isinstance(to.value, str) or not to.value:
                what = f"`{pattern}` must be renamed to text, not {kind_of(to.value)}"
                self.problems.add(what, to.mark, example)
                continue
            try:
                renamer(pattern, to.value)
            except ValueError as error:
                self.problems.add(str(error), to.mark, example)
                continue
            rules[pattern] = to.value
        return rules
