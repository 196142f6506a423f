"""Whether dense models can stand beside each other as experts of one routed model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mergekit_lite.moe.assembly import FeedForward
from mergekit_lite.moe.donors import Donor, donor_of
from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View, shape_text
from mergekit_lite.recipe.schema import BASE, MoeExpert, Recipe


def width_of(name: str, found: Mapping[str, View], feed: FeedForward) -> int:
    """Return the width of an input's feed-forward layers."""
    view = found[name]
    for names in feed.names.values():
        shape = view.shape(names["gate"]) or found[BASE].shape(names["gate"])
        if shape:
            return shape[0]
    return 0


def check_experts(
    recipe: Recipe,
    donor: Donor,
    experts: Sequence[MoeExpert],
    found: Mapping[str, View],
    feed: FeedForward,
    findings: Findings,
) -> None:
    """Note what keeps models from being experts of one routed model.

    Args:
        recipe: `moe.allow` names settings in which they may differ.
        donor: what the base is.
        experts: the routed experts.
        found: the base and the experts.
        feed: the base's feed-forward layers.
        findings: where problems are noted.
    """
    allowed = recipe.moe.allow if recipe.moe else ()
    for name in dict.fromkeys(expert.expert for expert in experts):
        view = found[name]
        view.used += 1
        if view.settled or view.is_base:
            continue
        where = recipe.at("experts", name)
        _check_shapes(view, donor, feed, findings, where)
        if view.model.adapter is None:
            differing = [text for key, text in _differences(view, donor) if key not in allowed]
            if differing:
                findings.problem(
                    f"expert `{name}` reads and adds to another residual stream than the base:"
                    f" {', '.join(differing)}",
                    where,
                    "take models that were tuned from one; `moe: {allow: [KEY]}` lets one pass",
                )
            _warn_of_ends(view, found[BASE], findings, where)
    for expert in experts:
        if expert.rows is not None:
            findings.problem(
                "`rows` are vectors of adapters, and experts here are feed-forward layers",
                expert.where,
                "write `target: lora_moe`, or leave `rows` out",
            )
        if expert.noise is not None and not expert.noise.relative and expert.noise.scale > 0:
            findings.warn(
                f"noise of {expert.noise.scale:g} is absolute: matrices whose entries are as small"
                " are lost in it; `relative: true` measures it by each matrix",
                expert.where,
            )


def _check_shapes(
    view: View, donor: Donor, feed: FeedForward, findings: Findings, where: str
) -> None:
    for names in feed.names.values():
        gate = view.shape(names["gate"])
        for part, name in names.items():
            shape = view.shape(name)
            if shape is None or gate is None:
                continue
            wanted = (donor.hidden, gate[0]) if part == "down" else (gate[0], donor.hidden)
            if shape != wanted:
                findings.problem_with(
                    f"`{name}` {shape_text(shape)} (wanted {shape_text(wanted)})",
                    f"expert `{view.name}` is not as wide as the base",
                    where,
                    "experts of one model share its residual stream; only the width of their"
                    " feed-forward layers may differ",
                )


def _differences(view: View, donor: Donor) -> Iterator[tuple[str, str]]:
    """Yield the settings in which an expert computes otherwise than the base."""
    own = donor_of(view.model.config, donor.hidden, donor.width, donor.layers)
    if own is None:
        return
    pairs = {
        "num_attention_heads": (own.heads, donor.heads),
        "num_key_value_heads": (own.key_value_heads, donor.key_value_heads),
        "head_dim": (own.head_dim, donor.head_dim),
        "rope_theta": (own.rope.get("rope_theta"), donor.rope.get("rope_theta")),
        "rope_scaling": (_scaling(own), _scaling(donor)),
        "attention_bias": (own.bias, donor.bias),
        "sliding_window": (own.window, donor.window),
        "rms_norm_eps": (own.get("rms_norm_eps"), donor.get("rms_norm_eps")),
        "hidden_act": (own.get("hidden_act"), donor.get("hidden_act")),
    }
    for key, (mine, theirs) in pairs.items():
        if mine != theirs:
            yield key, f"{key} {mine} (base {theirs})"


def _warn_of_ends(view: View, base: View, findings: Findings, where: str) -> None:
    """Warn of an expert that was taught to end its answers with another token."""
    ends = [configs.value(each.model.config, "eos_token_id") for each in (view, base)]
    mine, theirs = ({end} if isinstance(end, int) else set(end or ()) for end in ends)
    if mine and theirs and not mine & theirs:
        findings.warn(
            f"expert `{view.name}` ends texts with token {', '.join(map(str, sorted(mine)))}, the"
            f" base with {', '.join(map(str, sorted(theirs)))}: where this expert decides, answers"
            " may not stop",
            where,
        )


def _scaling(donor: Donor) -> dict[str, object]:
    return {key: value for key, value in donor.rope.items() if key != "rope_theta"}
