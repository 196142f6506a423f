"""Stages: named recipes inside a recipe, and who uses which of them."""

from __future__ import annotations

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.marks import Mark, Node, Problems, kind_of
from mergekit_lite.recipe.places import keys_of
from mergekit_lite.recipe.schema import Stage

SIGN = "@"
"""What a reference to a stage begins with."""

OUTSIDE = ("schema_version", "stages", "tokenizer", "chat_template", "moe", "expect", "search")
"""Keys of a recipe that its stages do not have."""

KEYS = [key for key in keys_of(Stage) if key not in (*OUTSIDE, "named")]
"""Keys of a stage."""


class Stages:
    """The stages of one recipe.

    Args:
        root: the recipe's tree.
        problems: where what is wrong is noted.
    """

    def __init__(self, root: Node, problems: Problems) -> None:
        node = root.get("stages")
        self.nodes = node.entries() if node is not None else {}
        self.problems = problems
        self._uses: dict[str, dict[str, Mark]] = {}  # stage ("" the recipe) -> what it uses
        if node is not None and not isinstance(node.value, dict):
            what = f"`stages` must be a mapping of names to recipes, not {kind_of(node.value)}"
            problems.add(what, node.mark, "write `stages: {NAME: {base: ..., steps: [...]}}`")

    def refer(self, node: Node, by: str) -> None:
        """Note that a reference names a stage.

        Args:
            node: the reference, such as `@inner`.
            by: the stage it stands in, empty for the recipe itself.
        """
        name = str(node.value).removeprefix(SIGN)
        if name in self.nodes:
            self._uses.setdefault(by, {}).setdefault(name, node.mark)
            return
        known = ", ".join(f"`{SIGN}{known}`" for known in self.nodes)
        hint = nearest(name, self.nodes) or (f"there are {known}" if known else "")
        self.problems.add(
            f"there is no stage `{name}`",
            node.mark,
            hint or f"define it: `stages: {{{name or 'NAME'}: {{base: ..., steps: [...]}}}}`",
        )

    def check(self) -> None:
        """Note stages that use one another in a circle, and those that nothing uses."""
        reached: set[str] = set()
        self._follow("", reached)
        for name, node in self.nodes.items():
            if name not in reached and not any(name in self._circle(n) for n in self.nodes):
                self.problems.add(
                    f"the stage `{name}` is not used",
                    node.key,
                    f"use it as `{SIGN}{name}`, or remove it",
                )
        told: set[frozenset[str]] = set()
        for name in self.nodes:
            circle = self._circle(name)
            if circle and frozenset(circle) not in told:
                told.add(frozenset(circle))
                path = " -> ".join([*circle, circle[0]])
                self.problems.add(
                    f"stages use one another in a circle: {path}",
                    self._uses[circle[-1]][circle[0]],
                    "a stage can only use stages that do not need it",
                )

    def _follow(self, name: str, reached: set[str]) -> None:
        for used in self._uses.get(name, {}):
            if used not in reached:
                reached.add(used)
                self._follow(used, reached)

    def _circle(self, start: str) -> list[str]:
        """Return the stages of a circle through `start`, beginning with it; none if none."""
        waiting, seen = [[start]], {start}
        while waiting:
            path = waiting.pop()
            for used in self._uses.get(path[-1], {}):
                if used == start:
                    return path
                if used not in seen:
                    seen.add(used)
                    waiting.append([*path, used])
        return []
