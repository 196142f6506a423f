"""Reads an adapter's tensors and gives a new folder for one that is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mergekit_lite.plan.types import Input, Plan

if TYPE_CHECKING:
    from mergekit_lite.sources import Model


def plan_of(models: Mapping[str, Model]) -> Plan:
    """Return a plan of no rows that names the inputs, which an output must stay clear of."""
    inputs = {
        name: Input(
            model.reference,
            str(model.root),
            model.kind,
            revision=model.revision or "",
            files=dict(model.header.files),
        )
        for name, model in models.items()
    }
    return Plan(inputs=inputs, jobs=(), shards=(), seed=0, layers=0, dtype="F32")
