"""A recipe of `mergekit-moe`, read into the tree of one of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.compat.inputs import Models
from mergekit_lite.recipe.compat.nodes import listed, mapping, scalar
from mergekit_lite.recipe.compat.notes import Notes
from mergekit_lite.recipe.compat.output import output_of
from mergekit_lite.recipe.compat.references import Reference, References
from mergekit_lite.recipe.marks import Node, Problems, kind_of, show

KEYS = (
    "base_model", "experts", "gate_mode", "dtype", "experts_per_token", "shared_experts",
    "architecture",
)  # fmt: skip
"""What stands at the top of such a recipe."""
_EXPERT = ("source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale")
_OURS = ("seed", "output", "schema_version")
_GATES: dict[str, dict[str, Any] | str] = {
    "hidden": "hidden",
    "hidden_last": "hidden",
    "cheap_embed": "cheap_embed",
    "random": {"method": "random", "init": "normal", "std": 1.0},
    "uniform_random": {"method": "random", "init": "uniform"},
}
"""`gate_mode` -> how gates are made here."""
_TARGETS = {"mixtral": "mixtral", "qwen moe": "qwen2_moe", "qwen3 moe": "qwen3_moe"}


def is_theirs(override: str) -> bool:
    """Return whether a change on the command line is to a key of such a recipe."""
    return override.strip().partition("=")[0].partition(".")[0].strip() in KEYS


class RoutedTranslator:
    """Reads one recipe of `mergekit-moe`.

    Args:
        root: its tree.
        folder: the recipe's folder.
        problems: where to note what is wrong.
        notes: where to note what is understood otherwise.
    """

    def __init__(self, root: Node, folder: Path, problems: Problems, notes: Notes) -> None:
        self.root, self.problems, self.notes = root, problems, notes
        self.references = References(folder, problems, notes)

    def translate(self) -> Node:
        """Return the recipe in our form; what cannot be read is noted and left out."""
        entries = self._entries(self.root, (*KEYS, *_OURS))
        mark = self.root.mark
        base = self.references.read(entries["base_model"]) if "base_model" in entries else None
        if "base_model" not in entries:
            what = "the recipe has no `base_model`"
            self.problems.add(what, mark, "write `base_model: ...`")
        models = Models(base or Reference("base_model", "", mark, ("", "")))
        experts = [
            found
            for node in (entries["experts"].items() if "experts" in entries else [])
            if (found := self._expert(node, models)) is not None
        ]
        moe: dict[str, Node] = {"experts": listed(experts, mark)} if experts else {}
        if not experts:
            what = "the recipe has no `experts`"
            self.problems.add(what, mark, "write `experts: [{source_model: ...}, ...]`")
        per_token = entries.get("experts_per_token")
        moe["experts_per_token"] = per_token if per_token is not None else scalar(2, mark)
        self._gate(entries.get("gate_mode"), moe)
        self._target(entries.get("architecture"), moe)
        self._shared(entries.get("shared_experts"), models, moe)
        recipe = {"base": models.base_node(), "moe": mapping(moe, mark)}
        if models.experts:
            named = {name: models.expert(name) for name in models.experts}
            recipe["experts"] = mapping(named, mark)
        if models.stages:
            recipe["stages"] = mapping(models.stages, mark)
        if (output := output_of(self.root, self.problems)) is not None:
            recipe["output"] = output
        own = {key: node for key, node in entries.items() if key in _OURS}
        return mapping({**recipe, **own, "compat": scalar("mergekit", mark)}, mark)

    def _entries(self, node: Node, keys: tuple[str, ...]) -> dict[str, Node]:
        found = {}
        for key, value in node.entries().items():
            if key not in keys:
                known = f"known here: {', '.join(f'`{name}`' for name in keys)}"
                self.problems.add(f"unknown key `{key}`", value.key, nearest(key, keys) or known)
            elif value.value is not None:
                found[key] = value
        return found

    def _expert(self, node: Node, models: Models) -> Node | None:
        if not isinstance(node.value, dict):
            what = f"an expert is a mapping, not {kind_of(node.value)}"
            self.problems.add(what, node.mark, "write `{source_model: ..., positive_prompts: []}`")
            return None
        entries = self._entries(node, _EXPERT)
        if "source_model" not in entries:
            what = "the expert has no `source_model`"
            self.problems.add(what, node.mark, "write `source_model: ...`")
            return None
        reference = self.references.read(entries["source_model"])
        if reference is None:
            return None
        mark = entries["source_model"].mark
        found = {"expert": scalar(models.name(reference), mark)}
        for theirs, ours in (("positive_prompts", "prompts"), ("negative_prompts", "negative")):
            if theirs in entries:
                found[ours] = entries[theirs]
        if "noise_scale" in entries:
            scale = entries["noise_scale"]
            # There it is added as it is, whatever the size of the weights.
            absolute = {"scale": scale, "relative": scalar(False, scale.mark)}
            found["noise"] = mapping(absolute, scale.mark)
        if "residual_scale" in entries:
            found["residual_scale"] = entries["residual_scale"]
        return mapping(found, node.mark)

    def _gate(self, node: Node | None, moe: dict[str, Node]) -> None:
        mode = node.value if node is not None else "hidden"
        mark = node.mark if node is not None else self.root.mark
        gate = _GATES.get(mode) if isinstance(mode, str) else None
        if gate is None:
            what = f"unknown `gate_mode: {show(mode)}`"
            hint = nearest(str(mode), _GATES) or f"known are {', '.join(_GATES)}"
            self.problems.add(what, mark, hint)
            return
        if isinstance(gate, str):
            moe["gate"] = scalar(gate, mark)
            return
        moe["gate"] = mapping({key: scalar(value, mark) for key, value in gate.items()}, mark)
        moe["for_training"] = scalar(True, mark)
        self.notes.add(
            f"`gate_mode: {mode}` draws other numbers than mergekit, the same with every run",
            mark,
        )

    def _target(self, node: Node | None, moe: dict[str, Node]) -> None:
        if node is None:
            return
        asked = str(node.value).lower()
        found = [ours for theirs, ours in _TARGETS.items() if theirs.startswith(asked)]
        if not found:
            what = f"`architecture: {show(node.value)}` is not supported"
            hint = "write `mixtral`, `qwen` or `qwen3`, or leave it out"
            if "deepseek".startswith(asked[:8]):
                hint = (
                    "its models need code of their own; `moe: {target: granitemoeshared}` holds the"
                    " same in a family that loaders know"
                )
            self.problems.add(what, node.mark, hint)
        elif len(found) == 1 or found[0] == "mixtral":
            moe["target"] = scalar(found[0], node.mark)

    def _shared(self, node: Node | None, models: Models, moe: dict[str, Node]) -> None:
        entries = node.items() if node is not None else []
        if node is None or not entries:
            return
        if len(entries) > 1:
            what = f"{len(entries)} shared experts: here there is at most one"
            self.problems.add(what, entries[1].mark, "leave the others out, or make them `experts`")
            return
        expert = self._expert(entries[0], models)
        if expert is None:
            return
        own = expert.entries()
        if "prompts" in own:
            self.notes.add(
                "the shared expert's prompts are left out: it counts in full for every token,"
                " not by how much a token resembles them",
                own["prompts"].mark,
                warns=True,
            )
        if "noise" in own:
            what = "`noise_scale` of the shared expert is not supported"
            self.problems.add(what, own["noise"].mark, "leave it out")
        kept = {key: node for key, node in own.items() if key in ("expert", "residual_scale")}
        moe["shared"] = mapping(kept, entries[0].mark)
