"""Whether gates can do what is asked of them, seen from the recipe alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergekit_lite.errors import MergekitLiteError
from mergekit_lite.moe.families import Family, Sizes
from mergekit_lite.moe.gates import GateSpec
from mergekit_lite.moe.gates._sidecar import known_experts
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.recipe.schema import MoeExpert, Recipe


def check_gate(
    recipe: Recipe,
    gate: GateSpec,
    family: Family,
    sizes: Sizes,
    hidden: int,
    experts: Sequence[MoeExpert],
    found: Mapping[str, View],
    findings: Findings,
) -> None:
    """Note gates that would be useless, or a family that would weaken what experts say."""
    where = recipe.at("moe", "gate")
    training = recipe.moe is not None and recipe.moe.for_training
    known = _known(recipe, sizes, hidden, findings)
    _check_texts(gate, experts[known:], findings, where)
    if gate.needs != "nothing":
        _check_files(recipe, experts, findings, where)
    if training:
        return
    redrawn = [expert for expert in experts if expert.redraw is not None]
    if redrawn:
        findings.problem(
            "neurons that are drawn anew know nothing until they are trained",
            redrawn[0].where or where,
            "write `moe: {for_training: true}`, or leave `redraw` out",
        )
    models = [(found[e.expert].model.root.resolve(), found[e.expert].model.stage) for e in experts]
    marks = [(m, e.noise, e.residual_scale) for m, e in zip(models, experts, strict=True)]
    alike = len(set(marks)) == 1
    noisy = any(e.noise is not None for e in experts)
    if alike and not noisy and len(experts) > 1:
        findings.problem(
            f"all {len(experts)} experts are `{experts[0].expert}`: the result computes what that"
            " model does, at a greater cost",
            recipe.at("moe", "experts"),
            "name other experts; `for_training: true` makes copies that training pulls apart",
        )
    everyone = sizes.per_token == sizes.experts
    if gate.name == "zeros" and not everyone:
        findings.problem(
            f"gates of zeros leave it to chance which {sizes.per_token} of {sizes.experts} experts"
            " a token passes",
            where,
            f"write `experts_per_token: {sizes.experts}` for the mean of all, or"
            " `for_training: true`",
        )
    if gate.name != "zeros" and not gate.routes and not everyone:
        findings.warn(
            f"`{gate.name}` gates send tokens to any expert until they are trained", where
        )
    if family.norm == "never" and not everyone:
        findings.problem(
            f"the weights of the experts that a token passes do not add up to 1 in a"
            f" `{family.name}` model, so the layers would say less than those they are made of",
            recipe.at("moe", "target"),
            f"write `experts_per_token: {sizes.experts}`, or `for_training: true`",
        )


def _known(recipe: Recipe, sizes: Sizes, hidden: int, findings: Findings) -> int:
    """Return how many experts an earlier result has measured, so that they need no texts."""
    gate = recipe.moe.gate if recipe.moe else None
    earlier = gate.params.get("earlier") if gate is not None else None
    if not isinstance(earlier, str):
        return 0
    where = recipe.at("moe", "gate", "earlier")
    try:
        known = known_experts(recipe.folder / earlier, sizes.routed, hidden)
    except MergekitLiteError as error:
        for problem in error.problems:
            findings.problem(problem.what, where, problem.hint)
        return sizes.experts // sizes.split
    if known >= sizes.experts // sizes.split:
        findings.problem(
            f"the earlier result has {known} experts already, and nothing new comes behind them",
            where,
            "list its experts in their order, then the new ones",
        )
    return known


def check_routing(recipe: Recipe, family: Family, layers: int, findings: Findings) -> None:
    """Note routing that the family has no place for, or that contradicts itself."""
    routing = recipe.moe.routing if recipe.moe else None
    if recipe.moe is None or routing is None:
        return
    if family.name != "routed":
        findings.problem(
            f"the routers of a `{family.name}` model choose a fixed number of experts, all of which"
            " do something",
            recipe.at("moe", "routing"),
            "write `target: routed` for a model with code of its own, or leave `routing` out",
        )
    if isinstance(routing.skip, tuple) and len(routing.skip) != layers:
        findings.problem(
            f"`skip` has {len(routing.skip)} numbers, and the model {layers} layers",
            recipe.at("moe", "routing", "skip"),
            "give one number, or one for each layer",
        )
    if routing.top_p is not None and recipe.moe.experts_per_token is not None:
        findings.problem(
            "`top_p` and `experts_per_token` both say how many experts a token passes",
            recipe.at("moe", "routing", "top_p"),
            "give one of them",
        )


def _check_files(
    recipe: Recipe, experts: Sequence[MoeExpert], findings: Findings, where: str
) -> None:
    """Note files of texts that are not there, or of a kind that is not read."""
    for expert in experts:
        if expert.data is not None:
            whose = f"for expert `{expert.expert}`"
            check_file(recipe, expert.data, whose, findings, expert.where or where)


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


def _check_texts(
    gate: GateSpec, experts: Sequence[MoeExpert], findings: Findings, where: str
) -> None:
    """Note experts without the texts that the gate is made from, or with each other's."""
    if gate.needs == "nothing":
        return
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
