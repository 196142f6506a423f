"""Ridge regression on what routers are shown: each expert's row fires on its own texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mergekit_lite.errors import DataError
from mergekit_lite.moe.gates._annotations import (
    Confidence,
    Labels,
    Length,
    Spread,
    Through,
    Tokens,
)
from mergekit_lite.moe.gates._equations import Equations
from mergekit_lite.moe.gates._measure import Reading, topics_of
from mergekit_lite.moe.gates._scale import Scale
from mergekit_lite.moe.gates._sidecar import known_experts, read_equations, write_equations
from mergekit_lite.moe.gates._spec import GateRequest, Gates, gate
from mergekit_lite.ops._parameters import Doc, Range

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@gate(title="Ridge regression", needs="texts")
def ridge(
    request: GateRequest,
    *,
    penalty: Annotated[
        float, Range(above=0), Doc("pull towards 0, over the mean square of the inputs")
    ] = 0.01,
    balanced: Annotated[
        bool, Doc("let every expert's texts count alike, however long they are")
    ] = True,
    normalize: Annotated[bool, Doc("give each row the norm 1 before it is scaled")] = False,
    spread: Spread = None,
    confidence: Confidence = None,
    temperature: Annotated[
        float, Range(above=0), Doc("divides the rows, which is dividing the logits")
    ] = 1.0,
    through: Through = "base",
    labels: Labels = "expert",
    tokens: Tokens = 16384,
    length: Length = 512,
    earlier: Annotated[
        str | None,
        Doc(
            "folder of an earlier result whose sums were kept: its experts come first here, and"
            " only those behind them need texts"
        ),
    ] = None,
    keep: Annotated[
        bool, Doc("put the sums beside the model, so that an expert can be added without old texts")
    ] = True,
) -> Gates:
    """Fit each router so that a token's logit is 1 for its own expert and 0 for the others.

    W = B (A + penalty * tr(A) / d * I)^-1 with A the sum of x x^T over all router inputs x and B
    the sum of x over the inputs of each expert, in fp64: one pass over the texts, closed form, no
    bias. A common component of all inputs, which misleads means, is fitted away. The rows are then
    scaled together.
    """
    before, known = None, 0
    if earlier is not None:
        before = request.texts / earlier
        known = known_experts(before, request.routers, request.hidden)
    topics = [t for t in topics_of(request.experts, request.texts) if t.expert >= known]
    scale = Scale.wanted(spread, confidence, request.per_token)
    reading = Reading(length, tokens, through, labels, scale.sample)
    rows: dict[int, NDArray[np.float32]] = {}
    passed = request.measured().sums(topics, reading)
    if before is not None:
        _require_alike(before, passed.facts, balanced=balanced)
    for layer, sums in passed.layers:
        if layer not in request.routers:
            continue
        new = [topic.expert - known for topic in topics]
        equations = Equations.of(sums, new, balanced=balanced)
        if before is not None:
            equations = read_equations(before, layer).extended(equations)
        found = equations.rows(penalty, normalize=normalize)
        found = scale.of(found, equations.pooled, sums) / temperature
        rows[layer] = found.astype("float32")
        if keep:
            write_equations(request.folder, layer, equations)
    return Gates(rows, {**passed.facts, **scale.facts(), "temperature": temperature})


def _require_alike(earlier: Path, facts: Mapping[str, Any], *, balanced: bool) -> None:
    """Refuse sums that do not add up with new ones: of another base, or weighted otherwise."""
    manifest = earlier / "moe_manifest.json"
    if not manifest.is_file():
        return
    gate = json.loads(manifest.read_text(encoding="utf-8"))["gate"]
    theirs = {**gate["made"], "balanced": gate["params"].get("balanced", True)}
    ours = {**facts, "balanced": balanced}
    for key in ("base_sha256", "rest", "through", "balanced"):
        if key in theirs and theirs[key] != ours[key]:
            what = f"the earlier sums are of another `{key}`: {theirs[key]}, here {ours[key]}"
            if key == "rest":
                what = "the earlier sums were measured with other weights beside the experts"
            raise DataError(what, "moe.gate.earlier", "add experts to what they were measured with")
