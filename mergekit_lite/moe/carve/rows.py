"""The rows of a carved model: slices of the base's matrices, its neurons in another order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

from mergekit_lite.moe.carve.unit import unit_weights
from mergekit_lite.moe.families import PARTS
from mergekit_lite.moe.parts import Part
from mergekit_lite.moe.rows import RoutedRows
from mergekit_lite.plan.types import Order
from mergekit_lite.recipe.schema import BASE, MoeExpert


class CarvedRows(RoutedRows):
    """Makes the rows of a carved model; see `RoutedRows`.

    The file of gates holds the order of each layer's neurons: those of the shared expert first,
    then those of each routed one.
    """

    def experts_of(self, layer: int) -> Iterator[tuple[MoeExpert, Mapping[str, Part]]]:
        sizes, carve = self.assembly.sizes, self.assembly.carve
        scale = carve.slice_scale if carve else 1.0
        factor, _ = unit_weights(self.assembly.family, self.assembly.donor, sizes, scale)
        scales = {"down": factor}
        whole = {
            part: self._ordered(layer, part, found)
            for part in PARTS
            if (found := self.part(layer, part, BASE, sizes.width, scales.get(part, 1.0)))
        }
        shared = carve.shared if carve else 0
        for number, expert in enumerate(self.assembly.experts):
            first = (shared + number) * sizes.width
            yield (
                expert,
                {
                    part: replace(found, first=(0, first) if part == "down" else (first, 0))
                    for part, found in whole.items()
                },
            )

    def shared_part(self, layer: int, part: str, found: Part) -> Part:
        asked = self.assembly.shared
        if asked is None or asked.expert == "zero":
            return found
        return self._ordered(layer, part, found)

    def _ordered(self, layer: int, part: str, found: Part) -> Part:
        axis: Literal["rows", "columns"] = "columns" if part == "down" else "rows"
        stored = (found.job.shape[0], found.job.shape[1])
        name = f"{self.assembly.roots[layer]}.neurons"
        return replace(found, order=Order(name, axis, stored))
