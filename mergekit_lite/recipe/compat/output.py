"""`dtype` and `out_dtype` of a mergekit recipe."""

from __future__ import annotations

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.compat.nodes import mapping
from mergekit_lite.recipe.marks import Node, Problems, kind_of, show

_DTYPES = ("bfloat16", "float16", "float32")


def output_of(root: Node, problems: Problems) -> Node | None:
    """Return `output` for a recipe; None where it keeps the dtype of its base.

    `dtype` is what mergekit computes in, and stores where `out_dtype` says nothing else. Here all
    is computed in fp32, so only what is stored matters.
    """
    found = None
    for key in ("out_dtype", "dtype"):
        node = root.get(key)
        if node is None or node.value is None:
            continue
        name = _name(key, node, problems)
        found = found or (node.with_value(name) if name else None)
    return mapping({"dtype": found}, found.mark) if found else None


def _name(key: str, node: Node, problems: Problems) -> str:
    if not isinstance(node.value, str):
        what = f"`{key}` must be the name of a dtype, not {kind_of(node.value)}"
        problems.add(what, node.mark, f"write one of {', '.join(_DTYPES)}")
        return ""
    name = node.value.removeprefix("torch.")
    if name in _DTYPES:
        return name
    if name == "float64":
        what, hint = "`float64` is not supported: all is computed in fp32", "write `float32`"
    else:
        what = f"unknown dtype `{show(node.value)}`"
        hint = nearest(name, _DTYPES) or f"write one of {', '.join(_DTYPES)}"
    problems.add(what, node.mark, hint)
    return ""
