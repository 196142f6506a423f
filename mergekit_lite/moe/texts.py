"""Whether the texts that gates are made from are there, and can be run as the gates ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_lite.errors import MergekitLiteError
from mergekit_lite.moe.assembly import FeedForward
from mergekit_lite.moe.experts import width_of
from mergekit_lite.moe.families import Family, Sizes
from mergekit_lite.moe.gates import GateSpec
from mergekit_lite.moe.gates.domain_embed import require_embeddings
from mergekit_lite.moe.judged import warn_of_text
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View, placed
from mergekit_lite.recipe.schema import BASE, MoeExpert, Recipe


def check_texts(
    recipe: Recipe,
    gate: GateSpec,
    experts: Sequence[MoeExpert],
    known: int,
    hidden: int,
    findings: Findings,
) -> None:
    """Note experts without the texts that the gate is made from, or with each other's.

    Args:
        recipe: what is wanted.
        gate: how the routers are made.
        experts: the routed experts.
        known: so many of them, the first, need no texts.
        hidden: entries of a router's row.
        findings: where problems are noted.
    """
    if gate.needs == "nothing":
        return
    for expert in experts:
        if expert.data is not None:
            whose, where = f"for expert `{expert.expert}`", recipe.at("moe", "gate")
            check_file(recipe, expert.data, whose, findings, expert.where or where)
    if isinstance(file := params_of(recipe).get("embeddings"), str):
        _check_embeddings(recipe, file, experts, hidden, findings)
        return
    if params_of(recipe).get("labels") == "perplexity":
        _check_pool(recipe, experts, findings)
        return
    _check_own(recipe, gate, experts[known:], findings)


def check_alone(
    recipe: Recipe,
    gate: GateSpec,
    family: Family,
    sizes: Sizes,
    experts: Sequence[MoeExpert],
    found: Mapping[str, View],
    findings: Findings,
) -> None:
    """Note experts that texts cannot be run through one by one, where the gate asks for that.

    Args:
        recipe: what is wanted.
        gate: how the routers are made.
        family: of the result.
        sizes: its numbers.
        experts: the routed experts.
        found: the base and the experts.
        findings: where problems are noted.
    """
    params = params_of(recipe)
    chosen = params.get("through") == "expert" or params.get("labels") == "perplexity"
    if not (chosen or gate.alone):
        return
    for expert in experts if gate.alone else ():
        if found[expert.expert].is_base and expert.noise is None and expert.redraw is None:
            findings.problem(
                f"expert `{expert.expert}` is the base, so there is nothing in its layers that"
                f" `{gate.name}` could learn to let through",
                expert.where or recipe.at("moe", "gate"),
                "take `ridge`",
            )
    feed = FeedForward.of(found[BASE].tensors)
    widths = {width_of(name, found, feed) for name in (BASE, *(e.expert for e in experts))}
    why = ""
    if family.fused:
        why = f"a `{family.name}` model stores all experts in one tensor"
    elif found[BASE].pieced:
        why = "the base stores its gate and up projections in one tensor"
    elif sizes.split > 1:
        why = "they are cut into slices"
    elif len(widths) > 1:
        why = "experts and base differ in width"
    if why:
        findings.problem(
            f"texts cannot be run through one expert alone, as this gate does: {why}",
            recipe.at("moe", "gate"),
            "take a gate that reads the base alone: `ridge` with `through: base` and"
            " `labels: expert`",
        )


def params_of(recipe: Recipe) -> Mapping[str, Any]:
    """Return the parameters that a recipe gives the gate."""
    return recipe.moe.gate.params if recipe.moe and recipe.moe.gate else {}


def check_file(recipe: Recipe, file: str, whose: str, findings: Findings, where: str) -> None:
    """Note a file of texts that is not there, or of a kind that is not read.

    Args:
        recipe: it is named in.
        file: as the recipe names it.
        whose: the texts are, in words.
        findings: where problems are noted.
        where: the recipe names it.
    """
    hint = "give a .txt file, or .jsonl with a `text` or `messages` in each line"
    path = recipe.folder / file
    if not path.is_file():
        findings.problem(f"there is no file `{file}` with texts {whose}", where, hint)
    elif path.suffix not in (".txt", ".jsonl"):
        findings.problem(f"`{file}`, the texts {whose}, is of no known kind", where, hint)
    else:
        warn_of_text(recipe, path, whose, findings, where)


def _check_embeddings(
    recipe: Recipe, file: str, experts: Sequence[MoeExpert], hidden: int, findings: Findings
) -> None:
    """Note embeddings that are not there, or not for all experts."""
    try:
        require_embeddings(recipe.folder / file, [one.expert for one in experts], hidden)
    except MergekitLiteError as error:
        findings.problems += placed(error.problems, recipe.at("moe", "gate", "embeddings"))


def _check_pool(recipe: Recipe, experts: Sequence[MoeExpert], findings: Findings) -> None:
    """Note texts of all experts together that nobody can be given."""
    where = recipe.at("moe", "gate", "labels")
    if not any(expert.prompts or expert.data for expert in experts):
        findings.problem(
            "no expert has texts, of which each would go to the expert that predicts it best",
            where,
            "give at least one of them `prompts` or `data`",
        )
    if params_of(recipe).get("earlier") is not None:
        findings.problem(
            "`earlier` keeps the texts of its experts to them, and `labels: perplexity` asks all"
            " experts whose a text is",
            where,
            "leave one of them out",
        )


def _check_own(
    recipe: Recipe, gate: GateSpec, experts: Sequence[MoeExpert], findings: Findings
) -> None:
    """Note experts without texts of their own, or with each other's."""
    where = recipe.at("moe", "gate")
    seen: dict[tuple[object, ...], list[MoeExpert]] = {}
    for expert in experts:
        has_texts = bool(expert.prompts) or (gate.needs == "texts" and expert.data is not None)
        if not has_texts:
            wanted = "`prompts`" if gate.needs == "prompts" else "`prompts` or `data`"
            findings.problem(
                f"the gate `{gate.name}` is made from texts, and expert `{expert.expert}` has no"
                f" {wanted}",
                expert.where or where,
                f"write `{{expert: {expert.expert}, prompts: [...]}}`",
            )
            continue
        key = (tuple(sorted(expert.prompts)), expert.data, tuple(sorted(expert.negative)))
        seen.setdefault(key, []).append(expert)
    for alike in seen.values():
        names = dict.fromkeys(expert.expert for expert in alike)
        if len(alike) == len(experts) > 1:
            findings.problem(
                "all experts have the same texts, so no gate can tell them apart",
                where,
                "give each texts of the kind that it alone is for",
            )
        elif len(names) > 1:
            findings.warn(
                f"experts {' and '.join(f'`{name}`' for name in names)} have the same texts: their"
                " gates are alike, and chance decides between them",
                alike[1].where or where,
            )
