"""The models that are merged together in a mergekit recipe, and the values for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.compat.inputs import BASE, Models
from mergekit_lite.recipe.compat.methods import FORMER, Method, Setting, all_settings
from mergekit_lite.recipe.compat.notes import Notes
from mergekit_lite.recipe.compat.references import Reference
from mergekit_lite.recipe.compat.settings import Value, scopes_value
from mergekit_lite.recipe.marks import Mark, Node, Problems, kind_of, show

_HOMES = {
    "random_seed": "write `seed: 0` at the top of the recipe, or `--set seed=0`",
    "seed": "write it at the top of the recipe, or `--set seed=0`",
    **dict.fromkeys(
        ("dtype", "out_dtype", "tokenizer_source", "base_model", "merge_method", "chat_template"),
        "it stands at the top of the recipe, not under `parameters`",
    ),
}
_YES_NO = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


@dataclass(frozen=True)
class Input:
    """One model of a group.

    Attributes:
        name: `base`, or the expert's name here.
        reference: the model.
        parameters: its own `parameters:`.
        mark: where it is listed.
        layers: first of its layers and the one after the last; None is all of them.
    """

    name: str
    reference: Reference
    parameters: Node | None
    mark: Mark
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class Group:
    """Models that are merged together, in order.

    Attributes:
        inputs: the models.
        scopes: `parameters:` for all of them, the strongest first.
        mark: where the group stands.
        base_counts: the base is one of the models that are merged, where it is among the inputs.
        models: names the inputs, where they have a base of their own; else the recipe's does.
    """

    inputs: tuple[Input, ...]
    scopes: tuple[Node | None, ...]
    mark: Mark
    base_counts: bool = False
    models: Models | None = None

    @property
    def merged(self) -> list[Input]:
        """The inputs that are merged: all but what differences are taken from."""
        return [item for item in self.inputs if self.base_counts or item.name != BASE]

    def names(self, setting: Setting) -> list[str | None]:
        """Return what a parameter is given for: None is the tensor, once for all models."""
        if setting.scope == "shared":
            return [None]
        return [item.name for item in self.merged]


Key = tuple[str, str | None]
"""A parameter of ours, and the model whose value it is; None for one value for all."""


@dataclass
class Settled:
    """What the parameters of a group are.

    Attributes:
        values: the values that hold where no filter fits.
        filtered: the values for tensors that a filter fits, best first.
        marks: where the first mention of each stands.
    """

    values: dict[Key, Node] = field(default_factory=dict)
    filtered: dict[Key, list[Value]] = field(default_factory=dict)


class Settler:
    """Reads the parameters of groups.

    Args:
        name: mergekit's name of the method.
        method: what is known about it.
        problems: where to note what is wrong.
        notes: where to note what was left out.
    """

    def __init__(self, name: str, method: Method, problems: Problems, notes: Notes) -> None:
        self.name = name
        self.method = method
        self.problems = problems
        self.notes = notes

    def settle(self, group: Group) -> Settled:
        """Return the values of a group's parameters."""
        settled = Settled()
        own = {item.name: item for item in group.inputs}
        for name, setting in self.method.settings.items():
            for model in group.names(setting):
                item = own[model] if model is not None else None
                scopes = ([item.parameters] if item else []) + list(group.scopes)
                values = scopes_value(name, scopes, self.problems)
                if setting.required and not (values and not values[-1].filter):
                    self._missing(name, values, item, group)
                # Where only one model can be, its value is the tensor's.
                alone = self.method.chain == ("passthrough",)
                self._take(setting, name, None if alone else model, values, settled)
        return settled

    def _take(
        self, setting: Setting, name: str, model: str | None, values: list[Value], into: Settled
    ) -> None:
        read = [v for value in values if (v := self._converted(setting, name, value)) is not None]
        if not setting.key:
            return
        plain = [value for value in read if not value.filter]
        filtered = [value for value in read if value.filter]
        if plain:
            into.values[setting.key, model] = plain[0].node
        if filtered:
            into.filtered[setting.key, model] = filtered

    def _missing(self, name: str, values: list[Value], item: Input | None, group: Group) -> None:
        whose = f" for `{item.reference.label}`" if item else ""
        if values:
            what = f"`{name}`{whose} has a value only where a filter fits"
            hint = f"end the list with an entry without a filter: `- value: {_shown(values[0])}`"
            self.problems.add(what, values[0].node.mark, hint)
            return
        what = f"`{self.name}` needs `{name}`{whose}"
        example = f"write `parameters: {{{name}: 0.5}}`"
        hint = f"{example} with the model" if item else f"{example} at the top of the recipe"
        if item is not None and item.name == BASE:
            hint = f"{example} with it under `models`, or remove `base_model`"
        self.problems.add(what, item.mark if item else group.mark, hint)

    def _converted(self, setting: Setting, name: str, value: Value) -> Value | None:
        node = value.node
        if setting.words is None:
            return value
        given = node.value
        if isinstance(given, str):
            given = _YES_NO.get(given.lower(), given)
        if given not in (True, False):
            what = f"`{name}` must be true or false, not `{show(node.plain())}`"
            self.problems.add(what, node.mark)
            return None
        if given and setting.refused:
            what = f"`{name}: true` is not supported with `{self.name}`: {setting.refused}"
            self.problems.add(what, node.mark, "remove it")
            return None
        return Value(value.filter, node.with_value(setting.words[bool(given)]))

    def check(self, node: Node | None, *, model: str = "", counts: bool = False) -> None:
        """Note the unknown keys of one `parameters:`, and those that mergekit reads past.

        Args:
            node: the mapping.
            model: name of the model that it belongs to, "" where it is for all.
            counts: whether the base is one of the models that are merged.
        """
        if node is not None and node.value is not None and not isinstance(node.value, dict):
            what = f"`parameters` must be a mapping, not {kind_of(node.value)}"
            self.problems.add(what, node.mark, "write `parameters: {NAME: VALUE}`")
        for key, entry in node.entries().items() if node is not None else ():
            setting = self.method.settings.get(key)
            if setting is None:
                self._strange(key, entry)
            elif model and setting.scope == "shared":
                what = f"`{key}` of one model is left out, as mergekit does: it holds for all"
                self.notes.add(
                    f"{what}, so it stands under `parameters` at the top", entry.key, warns=True
                )
            elif model == BASE and not counts and setting.scope == "model":
                self.notes.add(f"`{key}` of the base is left out: the base has none", entry.key)
            elif not setting.key and not setting.refused:
                self.notes.add(f"`{key}` is left out: it changes no number", entry.key)

    def _strange(self, key: str, entry: Node) -> None:
        known = all_settings()
        if key in known or key in FORMER:
            why = FORMER.get(key, f"`{self.name}` has no such parameter")
            what = f"`{key}` is left out, as mergekit does: {why}"
            self.notes.add(what, entry.key, warns=True)
            return
        own = self.method.settings
        listed = f"parameters of `{self.name}`: {', '.join(own)}" if own else ""
        listed = listed or f"`{self.name}` takes no parameters"
        hint = _HOMES.get(key) or nearest(key, own) or nearest(key, known) or listed
        self.problems.add(f"unknown parameter `{key}`", entry.key, hint)


def _shown(value: Value) -> str:
    return show(value.node.plain())


def by_model(settled: Settled, key: str) -> dict[str, Node]:
    """Return the values of a parameter by model."""
    return {model: node for (name, model), node in settled.values.items() if name == key and model}


def differs(left: Settled, right: Settled) -> bool:
    """Return whether two groups' parameters differ in anything."""

    def plain(settled: Settled) -> tuple[Mapping[Key, object], Mapping[Key, Sequence[object]]]:
        values = {key: node.plain() for key, node in settled.values.items()}
        filtered = {
            key: [(value.filter, value.node.plain()) for value in found]
            for key, found in settled.filtered.items()
        }
        return values, filtered

    return plain(left) != plain(right)
