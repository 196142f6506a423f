"""Whether an adapter was made for the base it is merged into, from headers and names alone."""

from __future__ import annotations

from pathlib import PurePath

from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View, extra_names
from mergekit_lite.plan.names import few, plural
from mergekit_lite.plan.patches import check_patch
from mergekit_lite.sources import Model


def check_adapter(view: View, base: View, findings: Findings, where: str) -> bool:
    """Note what shows that an adapter is for another model; return whether that settles it."""
    adapter = view.model.adapter
    if adapter is None:
        return False
    if adapter.patch is not None:
        return check_patch(view.name, adapter.patch, base.tensors, findings, where)
    names = {*adapter.factors, *adapter.replaced}
    trained_on = f" (`{adapter.base_model}`)" if adapter.base_model else ""
    strangers = extra_names(view)
    if not names:
        findings.problem(f"adapter `{view.name}` holds no factors", where, "train or fetch it anew")
    elif len(strangers) == len(names):
        findings.problem(
            f"adapter `{view.name}` fits nothing in the base: none of its"
            f" {plural(len(names), 'tensor')} is there, such as {few(strangers)}",
            where,
            f"use the base that it was trained on{trained_on}",
        )
    else:
        if is_other(adapter.base_model, base.model):
            findings.warn(
                f"adapter `{view.name}` says that it was trained on `{adapter.base_model}`, the"
                f" base is `{_named(base.model)}`: a delta belongs to the weights it was learnt on",
                where,
            )
        return False
    return True


def is_other(trained_on: str, base: Model) -> bool:
    """Return whether an adapter names another model than the base, which has to have a name too.

    Only the last parts are compared: owners and folders differ among copies of a model.
    """
    name = _named(base)
    if not trained_on or not name:
        return False
    known = {_last(name), _last(base.reference), _last(str(base.root))}
    # A snapshot in the Hub's cache lies below `models--OWNER--NAME`.
    known |= {part.rpartition("--")[2].lower() for part in base.root.parts if "--" in part}
    return _last(trained_on) not in known


def _named(base: Model) -> str:
    """Return the name that a base goes by; empty for a folder whose config tells none."""
    told = (base.config or {}).get("_name_or_path")
    if isinstance(told, str) and told:
        return told
    if base.revision or ":" in base.reference:
        return base.reference
    return ""


def _last(reference: str) -> str:
    return PurePath(reference.partition("@")[0]).name.lower()
