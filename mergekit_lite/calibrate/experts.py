"""A routed model that is not there yet, seen as the dense model that each of its experts makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mergekit_lite.errors import RecipeError
from mergekit_lite.moe.assembly import FeedForward
from mergekit_lite.moe.families import FAMILIES
from mergekit_lite.plan.stages import as_model
from mergekit_lite.plan.types import Plan

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

BASE, RESULT = "base", "result"


class DenseView:
    """Where the weights of a dense model are that a routed model in the making stands for.

    Args:
        plan: of the routed model.
        models: its inputs, opened.
    """

    def __init__(self, plan: Plan, models: Mapping[str, Model]) -> None:
        result = as_model(RESULT, plan, dict(models), named=True)
        self.models = {BASE: models[BASE], RESULT: result}
        self._stored = models[BASE].header.tensors
        self._made = result.header.tensors
        self._routed = frozenset(plan.moe["layers"])
        self._feed = FeedForward.of(self._stored)
        self._parts = {
            name: (layer, part)
            for layer, names in self._feed.names.items()
            for part, name in names.items()
        }
        self._copied = frozenset(
            job.name for job in plan.jobs if job.kind == "copy" and job.reads[0].source == BASE
        )
        self._family = FAMILIES[plan.moe["target"]]

    def place(self, expert: int | None) -> Callable[[str], tuple[str, str]]:
        """Return what says of a tensor of the base which model has it, and under which name.

        Feed-forward matrices of routed layers are those of one expert, or the base's for None;
        all else is as in the result.

        Raises:
            RecipeError: the expert's matrices cannot be read as those of a dense layer.
        """
        if expert is not None:
            self._require(expert)

        def where(name: str) -> tuple[str, str]:
            layer, part = self._parts.get(name, (-1, ""))
            if layer in self._routed:
                return (BASE, name) if expert is None else (RESULT, self.name(expert, layer, part))
            return (RESULT, name) if name in self._made else (BASE, name)

        return where

    @property
    def layers(self) -> frozenset[int]:
        """Indices of the routed layers."""
        return self._routed

    @property
    def merged(self) -> list[str]:
        """Tensors that are not routed and not copies of the base's, by name."""
        return [
            name
            for name in sorted(self._stored)
            if self._parts.get(name, (-1, ""))[0] not in self._routed
            and name in self._made
            and name not in self._copied
        ]

    def name(self, expert: int, layer: int, part: str) -> str:
        """Return the name of an expert's matrix in the result."""
        return f"{self._feed.roots[layer]}.{self._family.experts[part].format(e=expert)}"

    def dense_name(self, layer: int, part: str) -> str:
        """Return the name of the base's matrix."""
        return self._feed.names[layer][part]

    def _require(self, expert: int) -> None:
        hint = "take a gate that reads the base alone: `ridge` with `through: base`"
        if self._family.fused or not self._parts:
            raise RecipeError(
                "texts cannot be run through one expert alone: its matrices are parts of others",
                "moe",
                hint,
            )
        for name, (layer, part) in self._parts.items():
            own = self._made.get(self.name(expert, layer, part)) if layer in self._routed else None
            if own is not None and own.shape != self._stored[name].shape:
                raise RecipeError(
                    "texts cannot be run through one expert alone: experts differ in width",
                    "moe",
                    hint,
                )
