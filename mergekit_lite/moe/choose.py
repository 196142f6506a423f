"""Which family of routed models holds what a dense model computes."""

from __future__ import annotations

from collections.abc import Iterator

from mergekit_lite.moe.donors import DENSE, Donor
from mergekit_lite.moe.families import FAMILIES, Family
from mergekit_lite.plan.findings import Findings
from mergekit_lite.recipe.schema import Recipe

_UNDER_AUTO = (
    "mixtral", "granitemoe", "qwen2_moe", "qwen3_moe", "flex_olmo", "ernie4_5_moe",
    "hunyuan_v1_moe", "deepseek_v3", "deepseek_v2", "glm4_moe", "dots1",
)  # fmt: skip
_WITH_SHARED = ("glm4_moe", "granitemoeshared", *_UNDER_AUTO)


def choose(recipe: Recipe, donor: Donor, findings: Findings) -> Family | None:
    """Return the family that the recipe names, or the first that holds the base.

    None where there is none; the reason is noted.
    """
    moe = recipe.moe
    if moe is None:
        return None
    where = recipe.at("moe", "target")
    wants_shared = moe.shared is not None and moe.shared.expert != "none"
    if moe.carve is not None:
        wants_shared = moe.carve.shared > 0
    if moe.target == "lora_moe":
        findings.problem(
            "`target: lora_moe` puts adapters beside each other; nothing is carved into it",
            where,
            "leave `target` out, or write `target: routed`",
        )
        return None
    if moe.target != "auto":
        family = FAMILIES[moe.target]
        if reasons := list(misfits(family, donor)):
            others = [name for name in _WITH_SHARED if not any(misfits(FAMILIES[name], donor))]
            findings.problem(
                f"a `{family.name}` model cannot compute what the base does: {'; '.join(reasons)}",
                where,
                f"`target: {others[0]}` can" if others else _nobody(donor),
            )
            return None
        if wants_shared and family.shared is None:
            findings.problem(
                f"a `{family.name}` model has no shared expert",
                recipe.at(*(("moe", "carve") if moe.carve else ("moe",)), "shared"),
                "leave `shared` out, or write `target: glm4_moe` or `granitemoeshared`",
            )
            return None
        return family
    for name in _WITH_SHARED if wants_shared else _UNDER_AUTO:
        family = FAMILIES[name]
        if not any(misfits(family, donor)) and not (wants_shared and family.shared is None):
            return family
    findings.problem(
        f"no family of routed models that loaders know computes what this `{donor.model_type}`"
        " model does",
        where,
        _nobody(donor),
    )
    return None


def _nobody(donor: Donor) -> str:
    return f"known bases are {', '.join(DENSE)} models"


def misfits(family: Family, donor: Donor) -> Iterator[str]:
    """Yield what of a dense model a family has no place for."""
    if not family.donors:
        yield "no dense family has its norms, so there is nothing to assemble it from"
        return
    if donor.model_type not in family.donors:
        yield f"it takes {', '.join(family.donors)} models, not `{donor.model_type}`"
        return
    if donor.bias not in family.bias:
        biases = {"none": "no bias", "qkv": "biases of q, k and v", "all": "biases of all four"}
        yield f"its attention has no place for {biases[donor.bias]}"
    if donor.dense.head_norm not in family.head_norms:
        yield "its attention normalises queries and keys in another way"
    if donor.partial != 1.0 and not family.partial:
        yield f"it rotates whole heads, not a part (`partial_rotary_factor` {donor.partial:g})"
    if donor.window is not None and family.window == "none":
        yield "it has no sliding window"
    if donor.window == "mixed" and family.window == "uniform":
        yield "all its layers have one sliding window"
    if donor.get("hidden_act") not in ("silu", "swish"):
        yield f"its activation is silu, not `{donor.get('hidden_act')}`"
    if donor.get("mlp_bias") or (donor.model_type == "ernie4_5" and donor.bias != "none"):
        yield "its experts have no biases"
