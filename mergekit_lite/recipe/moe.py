"""The `moe:` of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.bias import read_bias
from mergekit_lite.recipe.carve import CarveReader
from mergekit_lite.recipe.grow import GrowReader
from mergekit_lite.recipe.marks import Node, kind_of, show
from mergekit_lite.recipe.merge_experts import read_merge
from mergekit_lite.recipe.places import keys_of
from mergekit_lite.recipe.prune import PruneReader, read_dense
from mergekit_lite.recipe.schema import (
    BASE,
    Moe,
    MoeExpert,
    Noise,
    Redraw,
    Routing,
    SharedExpert,
    Target,
)

if TYPE_CHECKING:
    from mergekit_lite.recipe.shape import Shaper

NO_EXPERT = ("none", "zero")
"""What `shared` may say in place of a name."""
OUTSIDE = ("dense", "identical")
_EXAMPLE = "write `moe: {experts_per_token: 2, gate: random}`"


class MoeReader:
    """Reads what a recipe says about the routed model that it assembles."""

    def __init__(self, shaper: Shaper) -> None:
        self.shaper = shaper
        self.problems = shaper.problems
        self.names = [BASE, *shaper.experts]

    def read(self, node: Node) -> Any:
        """Return plain data for `Moe`."""
        if not isinstance(node.value, dict):
            what = f"`moe` must be a mapping, not {kind_of(node.value)}"
            self.problems.add(what, node.mark, _EXAMPLE)
            return {}
        entries = self.shaper.known(node, keys_of(Moe), "moe")
        data = {key: value.plain() for key, value in entries.items() if value.value is not None}
        if "prune" in data:
            data["prune"] = PruneReader(self.shaper, node).read(entries["prune"])
        if "merge" in data:
            data["merge"] = read_merge(self.shaper, node, entries["merge"])
        if "grow" in data:
            data["grow"] = GrowReader(self.shaper, node, self._name).read(entries["grow"])
        if "dense" in data:
            data["dense"] = read_dense(self.shaper, node, entries["dense"])
        if "bias" in data:
            data["bias"] = read_bias(self.shaper, node, entries["bias"])
        if "carve" in data:
            data["carve"] = CarveReader(self.shaper, node).read(entries["carve"])
        if isinstance(data.get("target"), str):
            data["target"] = self._target(entries["target"])
        if isinstance(data.get("experts"), list):
            listed = entries["experts"].items()
            if not listed:
                self.problems.add(
                    "`moe.experts` is empty", entries["experts"].mark, "leave it out to take all"
                )
            data["experts"] = [self._expert(entry) for entry in listed]
        if "expand" in data and not isinstance(entries["expand"].value, dict):
            data["expand"] = {"experts": data["expand"]}
        if "shared" in data:
            data["shared"] = self._shared(entries["shared"])
        if "routing" in data:
            data["routing"] = self._routing(entries["routing"])
        if "gate" in data:
            data["gate"] = self._gate(entries["gate"])
        if "outside" in data and data["outside"] not in OUTSIDE:
            what = f"`moe.outside: {show(data.pop('outside'))}` is not known"
            hint = nearest(entries["outside"].value, OUTSIDE) or f"known here: {', '.join(OUTSIDE)}"
            self.problems.add(what, entries["outside"].mark, hint)
        if isinstance(data.get("allow"), str):
            data["allow"] = [data["allow"]]
        for key in ("slices", "output.lora"):
            first, _, second = key.partition(".")
            found = self.shaper.root.get(first)
            found = found.get(second) if found is not None and second else found
            if found is not None and found.value is not None:
                what = f"`moe` and `{key}` do not go together"
                self.problems.add(what, found.key, "do one of them in a recipe of its own")
        return data

    def _target(self, node: Node) -> str:
        known = get_args(Target)
        if node.value in known:
            return str(node.value)
        what = f"`moe.target: {show(node.value)}` is no family that can be assembled"
        hint = nearest(node.value, known) or f"known here: {', '.join(known)}"
        self.problems.add(what, node.mark, hint)
        return "auto"

    def _name(self, node: Node, owner: str, words: tuple[str, ...] = ()) -> str:
        """Return the name of an input, noting one that there is not."""
        allowed = [*self.names, *words]
        if node.value in allowed:
            return str(node.value)
        listed = ", ".join(f"`{name}`" for name in allowed)
        if isinstance(node.value, str):
            what = f"`{owner}: {show(node.value)}` is no input of this recipe"
            hint = nearest(node.value, allowed) or f"known here: {listed}"
        else:
            what, hint = f"`{owner}` must be a name, not {kind_of(node.value)}", listed
        self.problems.add(what, node.mark, hint)
        return BASE

    def _expert(self, node: Node) -> dict[str, Any]:
        where = str(node.mark)
        if not isinstance(node.value, dict):
            return {"expert": self._name(node, "moe.experts"), "where": where}
        entries = self.shaper.known(node, keys_of(MoeExpert), "moe.experts")
        data = {key: value.plain() for key, value in entries.items() if value.value is not None}
        if "expert" not in entries:
            what = "an entry of `moe.experts` does not say whose layers it has"
            self.problems.add(what, node.mark, "write `{expert: NAME, prompts: [...]}`")
            data["expert"] = BASE
        else:
            data["expert"] = self._name(entries["expert"], "moe.experts.expert")
        for key in ("prompts", "negative"):
            if isinstance(data.get(key), str):
                data[key] = [data[key]]
        if "noise" in data:
            data["noise"] = self._short(entries["noise"], Noise, "scale")
        if "redraw" in data:
            data["redraw"] = self._short(entries["redraw"], Redraw, "ratio")
        return {**data, "where": where}

    def _short(self, node: Node, model: type, key: str) -> Any:
        """Return plain data of a mapping for which one of its values may stand alone."""
        if not isinstance(node.value, dict):
            return {key: node.plain()}
        owner = f"moe.experts.{model.__name__.lower()}"
        entries = self.shaper.known(node, keys_of(model), owner)
        return {name: value.plain() for name, value in entries.items()}

    def _shared(self, node: Node) -> dict[str, Any]:
        if not isinstance(node.value, dict):
            return {"expert": self._name(node, "moe.shared", NO_EXPERT)}
        entries = self.shaper.known(node, keys_of(SharedExpert), "moe.shared")
        data = {key: value.plain() for key, value in entries.items()}
        if "expert" not in entries:
            self.problems.add(
                "`moe.shared` names no expert", node.mark, "write `shared: {expert: base}`"
            )
            data["expert"] = NO_EXPERT[0]
        else:
            data["expert"] = self._name(entries["expert"], "moe.shared.expert", NO_EXPERT)
        return data

    def _routing(self, node: Node) -> dict[str, Any]:
        if not isinstance(node.value, dict):
            what = f"`moe.routing` must be a mapping, not {kind_of(node.value)}"
            self.problems.add(what, node.mark, "write `routing: {top_p: 0.4}`")
            return {}
        entries = self.shaper.known(node, keys_of(Routing), "moe.routing")
        return {key: value.plain() for key, value in entries.items()}

    def _gate(self, node: Node) -> dict[str, Any]:
        if isinstance(node.value, str):
            return {"method": node.value}
        method = node.get("method")
        if method is None or not isinstance(method.value, str):
            what = "`moe.gate` names no method"
            self.problems.add(what, node.mark, "write `gate: random` or `gate: {method: ridge}`")
            return {"method": "random"}
        params = {key: value.plain() for key, value in node.entries().items() if key != "method"}
        return {"method": method.value, "params": params}
