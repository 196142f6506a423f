"""From the slices of a recipe to the layers of the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mergekit_lite.checkpoint import TensorInfo, layer_of, role_of
from mergekit_lite.checkpoint.names import stack_of
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.frame import Frame, Target, plain_target
from mergekit_lite.plan.inputs import View, shape_text
from mergekit_lite.plan.rules import layer_span
from mergekit_lite.plan.stacks import Stack
from mergekit_lite.recipe.layers import Ranges, format_layers
from mergekit_lite.recipe.schema import BASE, Recipe, Slice

_FOR_ALL = "relative_attention_bias.weight"

Floor = Mapping[str, int]
"""One layer of the output: input -> its layer that stands there; the donor comes first."""


class Assembler:
    """Stacks the layers of one recipe.

    Args:
        recipe: with slices.
        found: the base and the experts.
        stacks: the stack that is sliced, as each of them has it.
        findings: where problems are noted.
    """

    def __init__(
        self,
        recipe: Recipe,
        found: Mapping[str, View],
        stacks: Mapping[str, Stack],
        findings: Findings,
    ) -> None:
        self.recipe, self.found, self.stacks = recipe, found, stacks
        self.findings = findings
        self.floors: list[tuple[int, Floor]] = []
        for number, part in enumerate(recipe.slices):
            self.floors += [(number, floor) for floor in self._floors(number, part)]

    def frame(self) -> Frame:
        """Return the tensors of the output; each view knows what stands for them."""
        base = self.stacks[BASE]
        targets: list[Target] = []
        done = False
        stored, shown = self.found[BASE].tensors, self.found[BASE].base
        for info in stored.values():
            if layer_of(info.name) is None or stack_of(info.name) != base.name:
                targets += [plain_target(shown[info.name])] if info.name in shown else []
            elif not done:
                done = True
                targets += self._layers()
        targets += [plain_target(info) for name, info in shown.items() if name not in stored]
        if not self.floors and not self.findings.all_problems():
            self.findings.problem("the slices hold no layers", self.recipe.at("slices"))
        for name, view in self.found.items():
            view.base = {
                t.name: t.info for t in targets if t.has(name) and view.in_scope(view.own(t.name))
            }
            view.is_base = name == BASE  # another layer of the base is no zero delta
        layers = len(self.floors) + len(base.beyond)
        return Frame(targets, layers, tuple(self._map()))

    def _map(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for layer, (number, floor) in enumerate(self.floors):
            taken = self.recipe.slices[number].take
            sources = dict(floor) if taken is None else {taken: floor[taken]}
            rows.append(
                {"stack": self.stacks[BASE].name, "layer": layer, "slice": number,
                 "sources": sources}
            )  # fmt: skip
        return rows

    def _floors(self, number: int, part: Slice) -> list[Floor]:
        """Return the layers of one slice, none where something is wrong with it."""
        where = part.where or self.recipe.at("slices", number)
        if any(name not in self.found for name in part.layers):
            return []  # a model that could not be had, which has been noted
        runs = {name: self._run(name, part.layers[name], where) for name in part.layers}
        if any(run is None for run in runs.values()):
            return []
        layers = {name: run for name, run in runs.items() if run is not None}
        counts = {name: len(run) for name, run in layers.items()}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"`{name}` {count}" for name, count in counts.items())
            self.findings.problem(
                f"slice {number + 1} has runs of different length: {listed} layers",
                where,
                "inputs are matched layer by layer, so give each as many",
            )
            return []
        self._under(layers)
        return [
            dict(zip(layers, floor, strict=True)) for floor in zip(*layers.values(), strict=True)
        ]

    def _run(self, name: str, ranges: Ranges, where: str) -> list[int] | None:
        depth = self.stacks[name].depth
        last = [first if last is None else last for first, last in ranges]
        if max(last) >= depth:
            self.findings.problem(
                f"`{name}` has {layer_span(depth)}, asked {format_layers(ranges)}",
                where,
                "layers are counted from 0",
            )
            return None
        return [
            layer
            for first, last_or_end in ranges
            for layer in range(first, (depth - 1 if last_or_end is None else last_or_end) + 1)
        ]

    def _under(self, layers: dict[str, list[int]]) -> None:
        """Lay the base under a slice that does not name it, and put the donor first.

        The base's layers are those of the experts where these agree. An adapter has no tensors of
        its own, so the base is the donor of what it touches.
        """
        runs = list(layers.values())
        fits = max(runs[0]) < self.stacks[BASE].depth
        if BASE not in layers and fits and all(run == runs[0] for run in runs):
            layers[BASE] = runs[0]
        whole = [name for name in layers if self.found[name].model.adapter is None]
        donor = whole[0] if whole else ""
        if donor:
            layers |= {donor: layers.pop(donor), **{n: layers.pop(n) for n in list(layers)}}

    def _layers(self) -> list[Target]:
        """Return the targets of all layers of the output."""
        base = self.stacks[BASE]
        known = self._known_parts()
        self._check_first()
        targets: list[Target] = []
        for layer, (number, floor) in enumerate(self.floors):
            targets += self._layer(layer, number, floor, known)
        for view in self.found.values():
            # Names that stand for other layers now must not be found as they are.
            outputs = {t.name for t in targets}
            view.aligned = {name: view.aligned.get(name, "") for name in outputs}
        for offset, layer in enumerate(base.beyond):
            targets += self._beyond(len(self.floors) + offset, layer)
        return targets

    def _check_first(self) -> None:
        """Refuse to move what a first layer computes for all, such as T5's positions."""
        layers = self.stacks[BASE].layers
        shared = next((rest for rest in layers.get(0, {}) if rest.endswith(_FOR_ALL)), "")
        if not shared or any(shared in parts for layer, parts in layers.items() if layer):
            return
        for layer, (number, floor) in enumerate(self.floors):
            donor, own = next(iter(floor.items()))
            if (shared in self.stacks[donor].layers.get(own, {})) != (layer == 0):
                self.findings.problem(
                    f"layer {own} of `{donor}` cannot be layer {layer}: `{shared}` of the first"
                    " layer serves all others",
                    self.recipe.at("slices", number),
                    "begin with layer 0, and use it once",
                )

    def _known_parts(self) -> dict[str, tuple[set[tuple[int, ...]], str]]:
        """Return what the base's layers hold: rest of the name -> shapes and dtype."""
        known: dict[str, tuple[set[tuple[int, ...]], str]] = {}
        for parts in self.stacks[BASE].layers.values():
            for rest, info in parts.items():
                known.setdefault(rest, (set(), info.dtype))[0].add(info.shape)
        return known

    def _layer(
        self,
        layer: int,
        number: int,
        floor: Floor,
        known: Mapping[str, tuple[set[tuple[int, ...]], str]],
    ) -> list[Target]:
        donor = next(iter(floor))
        stack = self.stacks[donor]
        parts = stack.layers.get(floor[donor], {})
        targets = []
        for rest, info in parts.items():
            if not self._fits(donor, rest, info, known):
                continue
            name = f"{stack.name}.{layer}.{rest}"
            made = TensorInfo(name, known[rest][1], info.shape, info.file, info.start)
            targets.append(Target(made, layer, role_of(name), number, tuple(floor), donor))
        self._align([t.name for t in targets], layer, floor, parts)
        return targets

    def _fits(
        self,
        donor: str,
        rest: str,
        info: TensorInfo,
        known: Mapping[str, tuple[set[tuple[int, ...]], str]],
    ) -> bool:
        """Refuse a layer that is not built as the base's are."""
        where = self.recipe.at("experts", donor)
        if rest not in known:
            self.findings.problem_with(
                f"`{info.name}`",
                f"layers of `{donor}` hold tensors that no layer of the base has",
                where,
                "layers of one architecture only can be stacked",
            )
        elif info.shape not in known[rest][0]:
            base = " or ".join(sorted(map(shape_text, known[rest][0])))
            sizes = f" ({self.found[donor].sizes})" if self.found[donor].sizes else ""
            self.findings.problem_with(
                f"`{info.name}` {shape_text(info.shape)} (base {base})",
                f"layers of `{donor}` have other shapes than those of the base{sizes}",
                where,
                "only layers of one width can be stacked",
            )
        return rest in known and info.shape in known[rest][0]

    def _align(
        self, names: Sequence[str], layer: int, floor: Floor, parts: Mapping[str, TensorInfo]
    ) -> None:
        """Tell each input of a layer which of its tensors stand there."""
        for source, own in floor.items():
            view, stack = self.found[source], self.stacks[source]
            start = f"{stack.name}.{layer}."
            for name in names:
                view.aligned[name] = f"{stack.name}.{own}.{name.removeprefix(start)}"
            adapter = view.model.adapter is not None
            extra = [] if adapter else [r for r in stack.layers.get(own, {}) if r not in parts]
            for rest in extra:
                self.findings.problem_with(
                    f"`{stack.layers[own][rest].name}`",
                    f"`{source}` has tensors in layers where `{next(iter(floor))}` has none",
                    self.recipe.at("slices"),
                    "layers that are merged must be built alike",
                )

    def _beyond(self, layer: int, own: int) -> list[Target]:
        """Return the targets of a layer past those that the config counts, moved to the new end."""
        stack = self.stacks[BASE]
        targets = []
        for rest, info in stack.layers[own].items():
            name = f"{stack.name}.{layer}.{rest}"
            targets.append(Target(replace(info, name=name), layer, role_of(name)))
            for view in self.found.values():
                view.aligned[name] = info.name
        return targets
