"""The recipe of a routed model with one expert more, from what lies beside the model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mergekit_lite.checkpoint import read_checkpoint
from mergekit_lite.errors import DataError, RecipeError, SourceError
from mergekit_lite.export.gates import MANIFEST_FILE
from mergekit_lite.moe.gates._sidecar import FOLDER, known_experts
from mergekit_lite.plan.digests import DigestCache
from mergekit_lite.plan.lock import (
    LOCK_FILE,
    changed_inputs,
    input_digests,
    lock_inputs,
    read_lock,
)
from mergekit_lite.plan.stages import leaf_models

if TYPE_CHECKING:
    from mergekit_lite.plan.types import Plan
    from mergekit_lite.sources import Model

_ROUTED = re.compile(
    r"\.(block_sparse_moe|shared_mlp|mlp\.(gate|router|moe_statics|shared\w*|experts))\."
)
_ANY_LAYER = re.compile(r"\.layers\.\d+\.(?!mlp\.)")
_MADE_HERE = "name a folder that `run` has made of a recipe with `moe:` and the gate `ridge`"


def name_of(expert: str) -> str:
    """Return what an expert is called in a recipe, from where it is."""
    last = expert.rstrip("/").rpartition("/")[2].rpartition(":")[2].partition("@")[0]
    return re.sub(r"[^\w.-]", "-", last.removesuffix(".safetensors")) or "added"


def recipe_with(
    routed: Path,
    expert: str,
    *,
    name: str,
    lora: bool = False,
    prompts: Sequence[str] = (),
    data: str | None = None,
) -> dict[str, Any]:
    """Return the recipe that a routed model was made by, with one expert more.

    The experts that are there need no texts: the sums beside the model stand for them. All that is
    not routed stays as it is, for the new expert has a part in routed layers alone.

    Args:
        routed: folder of the model.
        expert: the model, or adapter, whose feed-forward layers are added.
        name: of the expert; not in use yet.
        lora: it is an adapter of the base.
        prompts, data: texts of the kind that it is for; one of them is needed.

    Raises:
        SourceError: the folder lacks what a run leaves beside such a model.
        RecipeError: its gates are of another kind, the name is in use, or there are no texts.
        DataError: what lies beside the model is damaged.
    """
    manifest = _manifest(routed)
    recipe: dict[str, Any] = deepcopy(read_lock(routed / LOCK_FILE)["recipe"])
    names = [one["expert"] for one in manifest["experts"]]
    if name in ("base", *recipe.get("experts", ())):
        raise RecipeError(
            f"the name `{name}` is in use: `{routed.name}` is made of"
            f" {', '.join(dict.fromkeys(names))}",
            hint="give the expert another with --name",
        )
    if not prompts and data is None:
        raise RecipeError(
            f"nothing says what texts `{name}` is for", hint="give --prompt TEXT or --data FILE"
        )
    layers = [int(layer) for layer in manifest["layers"]]
    if known_experts(routed, layers, int(manifest["hidden"])) != len(names):
        raise DataError(f"the sums in `{routed}` are not those of its {len(names)} experts")
    source = "lora" if lora else "model"
    recipe.setdefault("experts", {})[name] = {source: expert}
    if manifest["gate"]["made"].get("rest") != "base":
        recipe = {**{k: v for k, v in recipe.items() if k != "steps"}, **_rest_of(routed, recipe)}
    texts = {"prompts": list(prompts), **({"data": data} if data is not None else {})}
    listed = recipe["moe"].get("experts") or [{"expert": one} for one in names]
    params = {
        key: value
        for key, value in manifest["gate"]["params"].items()
        if key not in ("earlier", "labels", "keep")
    }
    recipe["moe"] |= {
        "target": manifest["target"],
        "experts": [*map(_without_texts, listed), {"expert": name, **texts}],
        "experts_per_token": manifest["experts_per_token"],
        "gate": {"method": "ridge", **params, "earlier": str(routed.resolve())},
    }
    return recipe


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """Return a recipe as the text of a file."""
    return yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=100)


def require_same_inputs(routed: Path, plan: Plan, models: Mapping[str, Model]) -> None:
    """Check that base and experts are the bytes that a routed model was made of.

    Raises:
        DataError: some are not; all are named.
    """
    cache = DigestCache()
    digests = input_digests(plan, cache, models=leaf_models(models))
    cache.save()
    lock = read_lock(routed / LOCK_FILE)
    now = lock_inputs(plan, digests)
    names = [
        name
        for name, source in plan.leaves.items()
        if name in lock["inputs"] and Path(source.root) != routed.resolve()
    ]
    before, after = ({name: own["inputs"][name] for name in names} for own in (lock, now))
    if problems := changed_inputs({"inputs": before}, {"inputs": after}):
        raise DataError(problems)


def _manifest(routed: Path) -> dict[str, Any]:
    file = routed / MANIFEST_FILE
    if not file.is_file() or not (routed / LOCK_FILE).is_file():
        lacking = MANIFEST_FILE if not file.is_file() else LOCK_FILE
        raise SourceError(f"`{routed}` has no {lacking}", hint=_MADE_HERE)
    try:
        found: dict[str, Any] = json.loads(file.read_bytes())
        method = found["gate"]["method"] if "gate" in found else None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError("it is damaged", str(file), _MADE_HERE) from error
    if method != "ridge" or "carve" in found:
        kind = f"by `{method}`" if method else "by taking or leaving experts"
        raise RecipeError(
            f"the routers of `{routed.name}` are made {kind}, which keeps no sums of old texts",
            hint="assemble it anew with the texts of all experts",
        )
    if not (routed / FOLDER).is_dir():
        raise RecipeError(
            f"`{routed.name}` has no folder `{FOLDER}` with the sums of its experts' texts",
            hint="assemble it anew with `gate: {method: ridge}`, without `keep: false`",
        )
    return found


def _rest_of(routed: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a recipe take all that is not routed from the model, as it was merged."""
    ours = {rule.get("take") for rule in recipe.get("rules", ())} == {"earlier"}
    name = "earlier" if ours or "earlier" not in recipe["experts"] else "earlier-result"
    files = sorted(routed.glob("*.safetensors"))
    names = [one for file in files for one in read_checkpoint(file).tensors]
    rest = [one for one in names if not _ROUTED.search(one)]
    scope = list(dict.fromkeys(_ANY_LAYER.sub(".layers.*.", one) for one in rest))
    experts = {**recipe["experts"], name: {"model": str(routed.resolve()), "scope": scope}}
    # Its routed layers have no place in the dense base, and are not wanted.
    return {
        "experts": experts,
        "extra": "drop",
        "rules": [{"match": one, "take": name} for one in scope],
    }


def _without_texts(expert: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in expert.items() if k not in ("prompts", "negative", "data")}
