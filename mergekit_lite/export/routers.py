"""Fitted routers of a merge: made before its rows run, told of in its manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergekit_lite.calibrate.host import Host
from mergekit_lite.plan.digests import file_sha256
from mergekit_lite.plan.types import GATE, Plan
from mergekit_lite.sources import Model, resolve


def with_routers(
    plan: Plan, models: Mapping[str, Model], folder: Path, host: Host
) -> dict[str, Model]:
    """Return the models with the fitted routers among them, fitted if they must be.

    Args:
        plan: of a merge with fitted routers.
        models: its inputs, opened.
        folder: where the file goes; what is there of it is used if it is of this plan.
        host: on which texts are run.
    """
    from mergekit_lite.moe.gate_file import GATE_FILE, is_of

    path, digest = folder / GATE_FILE, _digest(plan)
    if not is_of(path, digest):
        _make(plan, models, path, digest, host)
    made = resolve(str(path), relative_to=folder)
    return {**models, GATE: replace(made, reference=GATE)}


def _make(plan: Plan, models: Mapping[str, Model], path: Path, digest: str, host: Host) -> None:
    from mergekit_lite.calibrate.routers import RouterFitter
    from mergekit_lite.moe.gate_file import FACTS_FILE, write_tensors

    fits = RouterFitter(plan, models, host).fits()
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = [
        {
            "layer": fit.layer,
            "router": fit.name,
            "overlap": dict(fit.overlap),
            "overlap_of_others": dict(fit.others),
            "steps": fit.steps,
        }
        for fit in fits
    ]
    (path.parent / FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")
    # Last, and whole or not at all: a folder that has it needs no routers fitted.
    unfinished = path.with_suffix(".partial")
    write_tensors(unfinished, {fit.name: fit.rows for fit in fits}, {"mergekit_lite.plan": digest})
    unfinished.replace(path)


def _digest(plan: Plan) -> str:
    """Return what the routers depend on: the plan and the texts that it names."""
    digest = hashlib.sha256(plan.content_digest().encode())
    for file in plan.moe["routers"]["data"].values():
        digest.update(file_sha256(Path(plan.folder) / file).encode())
    return digest.hexdigest()


def routers_facts(plan: Plan, made: Path) -> dict[str, Any]:
    """Return what the manifest says of fitted routers.

    Args:
        plan: what was run.
        made: folder in which they were made.
    """
    from mergekit_lite.moe.gate_file import read_facts

    asked: dict[str, Any] = dict(plan.moe["routers"])
    said = {key: asked[key] for key in asked if key not in ("rows", "stored")}
    return {"routers": said, "layers": read_facts(made)}


def routers_text(moe: Mapping[str, Any]) -> str:
    """Return what a card says of fitted routers."""
    asked = moe["routers"]
    experts = ", ".join(f"`{name}`" for name in asked["data"])
    return (
        f"Routers are fitted to those of {experts} by `{asked['method']}`, on texts of each."
        " `moe_manifest.json` says for each layer how much of their choices is kept."
    )
