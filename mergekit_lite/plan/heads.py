"""Heads that share the embedding's weights in one input and have weights of their own in another.

A checkpoint whose head is tied to its embedding stores no head, or a copy that loaders ignore.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mergekit_lite.checkpoint import TensorInfo, role_of
from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.recipe.schema import Recipe

HEAD = "lm_head.weight"
TIED = "tie_word_embeddings"


def settle_head(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> dict[str, Any]:
    """Give the result the kind of head that the recipe asks for; return what its config must say.

    Args:
        recipe: `head` is what is wanted.
        found: the base and the experts; what the base offers changes.
        findings: where the choice is noted.
    """
    if recipe.head is None or found["base"].settled:
        return {}
    base, where = found["base"], recipe.at("head")
    embedding = embedding_of(base)
    if embedding is None:
        findings.problem("the base has no embedding that a head could be tied to", where, "")
        return {}
    head = head_of(base, base.tensors[embedding].shape)
    tied = head is None or configs.ties_head(base.model.config) is True
    if recipe.head == "tie":
        if head is not None:
            _show(found, {name: i for name, i in base.base.items() if name != head})
            findings.warn(f"head: tie: `{head}` of the base is left out", where)
        return {} if head is None and tied else {TIED: True}
    if not tied:
        return {}
    name = head or _head_of_experts(found) or HEAD
    base.renamed[name] = embedding
    info = replace(base.tensors[embedding], name=name)
    _show(found, {**base.base, name: info})
    findings.warn(
        f"head: untie: the base ties its head, so `{embedding}` stands for its `{name}`; the result"
        f" has a head of its own, {info.nbytes:,} bytes more than the base",
        where,
    )
    return {TIED: False}


def _show(found: Mapping[str, View], tensors: Mapping[str, TensorInfo]) -> None:
    for view in found.values():
        view.base = {name: info for name, info in tensors.items() if view.in_scope(name)}


def _head_of_experts(found: Mapping[str, View]) -> str | None:
    for view in found.values():
        embedding = embedding_of(view)
        if embedding is not None and (head := head_of(view, view.tensors[embedding].shape)):
            return head
    return None


def head_of(view: View, shape: tuple[int, ...]) -> str | None:
    """Return the stored head that has the shape of an embedding; one of classes has another."""
    found = (n for n, info in view.tensors.items() if role_of(n) == "head" and info.shape == shape)
    return next(found, None)


def embedding_of(view: View, width: tuple[int, ...] | None = None) -> str | None:
    """Return the embedding of tokens of a model; with `width`, only one with rows of that shape."""
    for name in configs.token_tensors(view.tensors, view.model.config)[0]:
        if role_of(name) == "embedding" and width in (None, view.tensors[name].shape[1:]):
            return name
    return None


def check_heads(
    recipe: Recipe,
    view: View,
    base: View,
    missing: Sequence[str],
    extra: Sequence[str],
    findings: Findings,
    where: str,
) -> None:
    """Settle a head that only one of base and expert has, the other's being tied."""
    for head in (name for name in view.base if role_of(name) == "head"):
        _borrow(view, head, head in missing, findings, where)
    for head in (name for name in extra if role_of(name) == "head"):
        if recipe.extra == "drop" or embedding_of(view) is None:
            continue
        # A head of classes has no row for each token, and is never tied.
        if head_of(view, view.tensors[str(embedding_of(view))].shape) != head:
            continue
        if configs.ties_head(base.model.config) is False and recipe.head != "tie":
            continue
        view.left_out.add(head)
        _leave_out(recipe, view, head, findings, where)


def _borrow(view: View, head: str, is_missing: bool, findings: Findings, where: str) -> None:
    """Let a tied expert's embedding stand for its head."""
    twin = embedding_of(view, view.base[head].shape[1:])
    ties = configs.ties_head(view.model.config)
    # A config without the key ties by default, and one that said no would have a head.
    if twin is None or (ties is False if is_missing else ties is not True):
        return
    if not is_missing and view.tensors[head].shape != view.tensors[twin].shape:
        return
    view.renamed[head] = twin
    findings.warn(
        f"expert `{view.name}` ties its head to its embedding: `{twin}` stands for `{head}`", where
    )


def _leave_out(recipe: Recipe, view: View, head: str, findings: Findings, where: str) -> None:
    if configs.ties_head(view.model.config):
        findings.warn(
            f"expert `{view.name}` stores `{head}` but ties it to its embedding; it is left"
            " out, as in the base",
            where,
        )
    elif recipe.head == "tie":
        findings.warn(f"head: tie: `{head}` of expert `{view.name}` is left out", where)
    else:
        findings.problem(
            f"expert `{view.name}` has a head of its own (`{head}`), the base ties its head"
            " to its embedding",
            where,
            "choose: `head: untie` gives the result a head of its own, merged from the base's"
            " embedding and the expert's head; `head: tie` leaves the expert's head out",
        )
