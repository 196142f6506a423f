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
    stages = {name: translate(node, names) for name, node in named.items()}
    root = translate(last, names)
    own = root.get("stages")
    inner = own.entries() if own is not None else {}
    return root.with_value({**root.value, "stages": mapping({**stages, **inner}, last.mark)})
