"""What a carved model says of its carving: which neuron stands where, and how much slices count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_lite.errors import DataError
from mergekit_lite.moe.families import FAMILIES, Family
from mergekit_lite.plan.digests import file_sha256

NEURONS_FILE = "carve_neurons.json"
"""Which neuron of the dense layer stands where in a carved one, layer by layer."""
MANIFEST_FILE = "moe_manifest.json"


@dataclass(frozen=True)
class Carving:
    """How a dense model was carved.

    Attributes:
        family: what it was carved into.
        shared: slices of the shared expert.
        routed: slices to choose from.
        per_token: slices that a token chooses.
        scale: what chosen slices say beside what they said in the dense layer.
        width: neurons of a dense layer.
        places: layer -> where each neuron stands, the shared slices' places first.
        count: places of a layer.
        sha256: of the file that says so.
    """

    family: Family
    shared: int
    routed: int
    per_token: int
    scale: float
    width: int
    places: Mapping[int, tuple[int, ...]]
    count: int
    sha256: str

    @property
    def factor(self) -> float:
        """What the down projections of routed slices were multiplied by."""
        if self.family.name == "routed":
            return self.scale
        if self.family.sigmoid or self.family.norm == "never":
            return 1.0  # the config has it
        return self.scale * (self.routed if self.family.name == "qwen2_moe" else self.per_token)

    @property
    def shared_factor(self) -> float:
        """What the down projection of the shared slices was multiplied by."""
        return 2.0 if self.family.shared and self.family.shared.sigmoid else 1.0


def read_carving(folder: Path, config: Mapping[str, Any]) -> Carving:
    """Return how the model of a folder was carved.

    Args:
        folder: of the model.
        config: of the model.

    Raises:
        DataError: it was not, or its files are not whole.
    """
    neurons, manifest = folder / NEURONS_FILE, folder / MANIFEST_FILE
    try:
        orders = json.loads(neurons.read_bytes())
        made = json.loads(manifest.read_bytes())
        asked = made["carve"]
        family = FAMILIES[made["target"]]
        slices, shared, width = asked["experts"], asked["shared"], asked["width"]
        places = {int(layer): _places(order, width) for layer, order in orders.items()}
        counts = {len(order) for order in orders.values()}
    except FileNotFoundError as error:
        raise DataError(
            "`concat` is the inverse of `moe.carve`, and there is no"
            f" `{Path(error.filename).name}`",
            str(folder),
            "take `mean`, or name a model that was carved here, with its files",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"`{NEURONS_FILE}` and `{MANIFEST_FILE}` do not say how this model was carved",
            str(folder),
            "restore the files that the carve has left beside the weights",
        ) from error
    stored = str(config.get("model_type", ""))
    if (family.name != stored and not stored.startswith(f"{family.name}_")) or len(counts) != 1:
        raise DataError(
            f"`{MANIFEST_FILE}` is of a `{family.name}` model, the config of `{stored}`",
            str(folder),
            "restore the files that the carve has left beside the weights",
        )
    return Carving(
        family, shared, slices - shared, asked["experts_per_token"], asked.get("slice_scale", 1.0),
        width, places, counts.pop(), file_sha256(neurons),
    )  # fmt: skip


def _places(order: list[int], width: int) -> tuple[int, ...]:
    """Return where each neuron stands in an order, in which all others stand for zeros."""
    found = {neuron: place for place, neuron in enumerate(order) if neuron < width}
    if sorted(found) != list(range(width)) or sum(neuron < width for neuron in order) != width:
        raise ValueError("an order that is none")
    return tuple(found[neuron] for neuron in range(width))
