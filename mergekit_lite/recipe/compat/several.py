"""A file with several mergekit recipes, of which the later use what the earlier make."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mergekit_lite.recipe.compat.nodes import mapping
from mergekit_lite.recipe.marks import Node, Problems, show

Translate = Callable[[Node, frozenset[str]], Node]
"""From one recipe's tree and the names of the others to that recipe in our form."""


def several(documents: Sequence[Node], translate: Translate, problems: Problems) -> Node:
    """Return one recipe of ours: that without a name, the others as its stages."""
    named: dict[str, Node] = {}
    last: Node | None = None
    for node in documents:
        name = node.get("name")
        if name is None or name.value is None:
            if last is not None:
                what = "a second recipe without a `name`: only the result has none"
                problems.add(what, node.mark, "give it a `name`")
            last = node
        elif not isinstance(name.value, str) or name.value in named:
            what = f"the name `{show(name.plain())}` is not text, or another recipe's"
            problems.add(what, name.mark, "give each recipe a name of its own")
        else:
            named[name.value] = node
    if last is None:
        what = "all recipes of this file have a `name`, so none of them is the result"
        problems.add(what, documents[-1].mark, "remove the `name` of the last one")
        last = documents[-1]
    names = frozenset(named)
    made = {name: translate(node, names) for name, node in named.items()}
    root = translate(last, names)
    stages: dict[str, Node] = {}
    for label, recipe in made.items():
        _lift(recipe, stages, names, problems)
        own = {key: entry for key, entry in recipe.value.items() if key != "stages"}
        stages[label] = recipe.with_value(own)
    _lift(root, stages, names, problems)
    return root.with_value({**root.value, "stages": mapping(stages, last.mark)})


def _lift(recipe: Node, stages: dict[str, Node], names: frozenset[str], problems: Problems) -> None:
    """Put the stages of a recipe, which add adapters to models, beside the others."""
    inner = recipe.get("stages")
    for key, stage in inner.entries().items() if inner is not None else ():
        if key in names or key in stages:
            what = f"an adapter makes a model called `{key}` here, and so is another recipe"
            problems.add(what, stage.mark, "rename the recipe")
        stages[key] = stage
