"""Whether gates can do what is asked of them, seen from the recipe alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergekit_lite.errors import MergekitLiteError
from mergekit_lite.moe.families import FAMILIES, Family, Sizes
from mergekit_lite.moe.gates import GateSpec
from mergekit_lite.moe.gates._sidecar import known_experts
from mergekit_lite.moe.texts import check_alone, check_texts, params_of
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.recipe.schema import Moe, MoeExpert, Recipe


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
    check_texts(recipe, gate, experts, known, hidden, findings)
    check_alone(recipe, gate, family, sizes, experts, found, findings)
    _check_scale(recipe, family, experts, findings)
    if gate.biased and not family.correction:
        known_for = [name for name, own in FAMILIES.items() if own.correction]
        findings.problem(
            f"routers of a `{family.name}` model have no bias, without which `{gate.name}` sends"
            " tokens to the wrong experts",
            where,
            f"take `ridge`, which needs none, or a `target` that has them: {', '.join(known_for)}",
        )
    if training:
        _warn_of_one(family, sizes, findings, recipe.at("moe", "experts_per_token"))
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


def _warn_of_one(family: Family, sizes: Sizes, findings: Findings, where: str) -> None:
    """Warn of routers that training cannot reach: the weight of a single choice is always 1."""
    if sizes.per_token == 1 and sizes.experts > 1 and family.norm != "never":
        findings.warn(
            f"a token passes one expert, whose weight a `{family.name}` model makes 1 whatever the"
            " router says: training gives the routers no gradient; `experts_per_token: 2` does",
            where,
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
    if routing.share:
        _check_share(recipe, recipe.moe, findings)
    if routing.top_p is not None and recipe.moe.experts_per_token is not None:
        findings.problem(
            "`top_p` and `experts_per_token` both say how many experts a token passes",
            recipe.at("moe", "routing", "top_p"),
            "give one of them",
        )


def _check_share(recipe: Recipe, moe: Moe, findings: Findings) -> None:
    """Note rows of routers that are to share experts where none can."""
    where = recipe.at("moe", "routing", "share")
    names = [expert.expert for expert in moe.experts]
    if len(set(names)) == len(names):
        findings.problem(
            "no two entries of `moe.experts` name the same model, so there is nothing to share",
            where,
            "list a model once for each kind of texts: `{expert: NAME, prompts: [...]}`",
        )
    if moe.split > 1:
        findings.problem(
            "`share` and `split` do not go together", where, "a slice has a row of its own"
        )


def _check_scale(
    recipe: Recipe, family: Family, experts: Sequence[MoeExpert], findings: Findings
) -> None:
    """Note a scale of the routers that is said twice, or that cannot be reached."""
    params = params_of(recipe)
    confidence = params.get("confidence")
    if not isinstance(confidence, float | int):
        return
    where, hint = recipe.at("moe", "gate", "confidence"), "write `spread` in its place"
    if params.get("spread") is not None:
        findings.problem("`spread` and `confidence` both say how large the rows are", where)
    if family.sigmoid:
        findings.problem(
            f"a `{family.name}` model weighs experts by sigmoids, of which no part goes to the"
            " likeliest",
            where,
            hint,
        )
    if params.get("earlier") is not None:
        findings.problem(
            "`confidence` is measured on texts of all experts, and `earlier` has none", where, hint
        )
    if confidence <= 1 / max(len(experts), 1):
        findings.problem(
            f"the likeliest of {len(experts)} experts has more than {confidence:g} of the weight"
            " in any case",
            where,
            "write a larger number",
        )
