"""`vars:` and `${name}`."""

from __future__ import annotations

import re
from dataclasses import replace

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.marks import Mark, Node, Problems, kind_of, show

_USE = re.compile(r"\$(\$\{|\{([^{}]*)\})")


class Variables:
    """The values under `vars:`, each resolved when first used."""

    def __init__(self, declared: dict[str, Node], problems: Problems) -> None:
        self.declared = declared
        self.problems = problems
        self.resolved: dict[str, Node] = {}

    def substitute(self, node: Node, inside: tuple[str, ...] = ()) -> Node:
        """Return the tree with every `${name}` replaced.

        A text that is nothing but `${name}` takes the variable's value with its type; inside a
        longer text the value is written out. `$${` stands for a literal `${`.
        """
        if isinstance(node.value, dict):
            return node.with_value(
                {key: self.substitute(value, inside) for key, value in node.value.items()}
            )
        if isinstance(node.value, list):
            return node.with_value([self.substitute(value, inside) for value in node.value])
        if not isinstance(node.value, str) or "${" not in node.value:
            return node
        whole = _USE.fullmatch(node.value)
        if whole and whole[2] is not None:
            found = self._value(whole[2].strip(), node.mark, inside)
            return replace(node, value=found.value, quoted=found.quoted)
        text = _USE.sub(lambda use: self._text(use, node.mark, inside), node.value)
        # `"0.${digits}"` cannot always be written without quotes.
        return replace(node, value=text, quoted=False)

    def _text(self, use: re.Match[str], mark: Mark, inside: tuple[str, ...]) -> str:
        if use[2] is None:
            return "${"
        value = self._value(use[2].strip(), mark, inside).value
        if isinstance(value, dict | list):
            what = f"`${{{use[2]}}}` is {kind_of(value)} and cannot stand inside a text"
            self.problems.add(what, mark, "let the whole value be the variable")
        return show(value) if value is None or isinstance(value, bool | dict | list) else str(value)

    def _value(self, name: str, mark: Mark, inside: tuple[str, ...]) -> Node:
        nothing = Node(None, mark, mark)
        if name in inside:
            circle = " -> ".join((*inside[inside.index(name) :], name))
            self.problems.add(f"variables use one another in a circle: {circle}", mark)
            return nothing
        if name not in self.declared:
            hint = nearest(name, self.declared) or _known(self.declared)
            self.problems.add(f"unknown variable `{name}`", mark, hint)
            return nothing
        if name not in self.resolved:
            self.resolved[name] = self.substitute(self.declared[name], (*inside, name))
        return self.resolved[name]


def _known(declared: dict[str, Node]) -> str:
    if not declared:
        return "declare it under `vars:`"
    return f"declared under `vars:` are {', '.join(f'`{name}`' for name in declared)}"


def substitute_variables(root: Node, problems: Problems) -> Node:
    """Take `vars:` off the tree and put its values in where `${name}` stands."""
    declared = root.get("vars")
    rest = {key: node for key, node in root.entries().items() if key != "vars"}
    if declared is not None and declared.value is not None and not isinstance(declared.value, dict):
        what = f"`vars` must be a mapping of names to values, not {kind_of(declared.value)}"
        problems.add(what, declared.mark, "write `vars: {density: 0.2}`")
    variables = Variables(declared.entries() if declared else {}, problems)
    for name, node in variables.declared.items():
        # A variable nobody uses is still checked, so that a typo inside it does not lie in wait.
        variables._value(name, node.mark, ())
    return variables.substitute(root.with_value(rest))
