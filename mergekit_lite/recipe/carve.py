"""The `moe.carve:` of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.marks import Node, kind_of, show
from mergekit_lite.recipe.places import keys_of
from mergekit_lite.recipe.schema import Carve, CarveMethod, CarveRouter

if TYPE_CHECKING:
    from mergekit_lite.recipe.shape import Shaper

_BESIDE = ("carve", "target", "layers", "for_training")
_EXAMPLE = "write `moe: {carve: {experts: 16, shared: 2, experts_per_token: 4, data: FILE}}`"
_READ = ("cmoe", "coactivation", "gradient", "ridge", "factor", "exact")
"""Methods and routers that look at texts."""
_NEEDED = {"experts": 2, "experts_per_token": 1}
"""Keys without a default, and what stands for them where they are missing."""


class CarveReader:
    """Reads how a dense base is cut into experts.

    Args:
        shaper: of the recipe.
        moe: the node of `moe`.
    """

    def __init__(self, shaper: Shaper, moe: Node) -> None:
        self.shaper, self.moe, self.problems = shaper, moe, shaper.problems

    def read(self, node: Node) -> dict[str, Any]:
        """Return plain data for `Carve`."""
        if not isinstance(node.value, dict):
            what = f"`moe.carve` must be a mapping, not {kind_of(node.value)}"
            self.problems.add(what, node.mark, _EXAMPLE)
            return dict(_NEEDED)
        self._check_beside()
        entries = self.shaper.known(node, keys_of(Carve), "moe.carve")
        entries = {key: value for key, value in entries.items() if value.value is not None}
        data = {key: value.plain() for key, value in entries.items()}
        for key, standing in _NEEDED.items():
            if key not in data:
                self.problems.add(f"`moe.carve` does not say `{key}`", node.mark, _EXAMPLE)
                data[key] = standing
        self._word(entries, data, "method", get_args(CarveMethod), "cmoe")
        self._word(entries, data, "router", get_args(CarveRouter), "ridge")
        needs = [word for word in (data["method"], data["router"]) if word in _READ]
        if needs and "data" not in data:
            listed = " and ".join(f"`{word}`" for word in needs)
            what = f"{listed} need texts to look at, and there is no `data`"
            hint = "write `data: FILE`, or `method: kmeans` and `router: param`, which need none"
            self.problems.add(what, node.mark, hint)
        if "data" in data and not needs:
            what = f"`data` says nothing to `{data['method']}` with a `{data['router']}` router"
            self.problems.add(what, entries["data"].key, "remove it, or take `router: ridge`")
        return data

    def _word(
        self,
        entries: dict[str, Node],
        data: dict[str, Any],
        key: str,
        known: tuple[str, ...],
        usual: str,
    ) -> None:
        found = data.setdefault(key, usual)
        if found not in known:
            what = f"`moe.carve.{key}: {show(found)}` is not known"
            hint = nearest(found, known) or f"known here: {', '.join(known)}"
            self.problems.add(what, entries[key].mark, hint)
            data[key] = "zeros" if key == "router" else known[-1]

    def _check_beside(self) -> None:
        """Refuse what has no part in cutting one model into slices."""
        for name, expert in self.shaper.experts.items():
            what = f"expert `{name}` has no part in cutting the base into slices"
            hint = "merge in a stage, and write `base: '@STAGE'` here"
            self.problems.add(what, expert.key, hint)
        for key, value in self.moe.entries().items():
            if key not in _BESIDE and value.value is not None:
                what = f"`moe.carve` and `moe.{key}` do not go together"
                hint = "what a carve needs stands under `carve`; experts of several models are"
                self.problems.add(what, value.key, f"{hint} assembled without it")
