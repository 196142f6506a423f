"""A router as a file, and where it sends a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mergekit_lite.errors import DataError, Problem, SourceError
from mergekit_lite.router.features import Array, Features, features_of

VERSION = 1
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_NGRAMS = {
    "properties": {
        "kind": {"const": "ngrams"},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 1}},
        "buckets": {"type": "integer", "minimum": 2},
    },
    "required": ["kind", "sizes", "buckets"],
    "additionalProperties": False,
}
_EMBEDDING = {
    "properties": {"kind": {"const": "embedding"}, "model": {"type": "string"}},
    "required": ["kind", "model"],
    "additionalProperties": False,
}
_KEYS: dict[str, Any] = {
    "router_version": {"const": VERSION},
    "features": {"type": "object", "oneOf": [_NGRAMS, _EMBEDDING]},
    "labels": {"type": "array", "items": {"type": "string"}, "minItems": 2},
    "models": {"type": "object", "additionalProperties": {"type": "string"}},
    "bias": _NUMBERS,
    "weights": {"type": "object", "additionalProperties": _NUMBERS},
    "texts": {"type": "object", "additionalProperties": {"type": "integer"}},
    "held_out": {
        "type": "object",
        "properties": {"texts": {"type": "integer"}, "right": {"type": "integer"}},
    },
}
SCHEMA: Mapping[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "A fitted router of texts to models",
    "type": "object",
    "properties": _KEYS,
    "required": ["router_version", "features", "labels", "models", "bias", "weights"],
    "additionalProperties": False,
}
"""JSON schema of a router file."""


@dataclass(frozen=True)
class Choice:
    """Where a text goes.

    Attributes:
        label: the label of the highest score; of equal ones the first by name.
        model: what that label names.
        scores: of each label; about 1 for texts of its kind and 0 for others.
    """

    label: str
    model: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Router:
    """A linear classifier of texts, and the model of each label.

    Attributes:
        labels: in order of the rows.
        models: label -> model.
        features: what it sees of a text.
        weights: (labels, features).
        bias: (labels,).
        texts: how many texts of each label it was fitted to.
    """

    labels: tuple[str, ...]
    models: Mapping[str, str]
    features: Features
    weights: Array
    bias: Array
    texts: Mapping[str, int]

    def route(self, text: str) -> Choice:
        """Return the label and the model of a text."""
        scores = self.weights @ self.features.of(text) + self.bias
        label = self.labels[int(scores.argmax())]
        named = dict(zip(self.labels, map(float, scores), strict=True))
        return Choice(label, self.models[label], named)

    def text(self, held_out: Mapping[str, int] | None = None) -> str:
        """Return the content of a router file; numbers have six digits.

        Args:
            held_out: `texts` and `right` of a measurement.
        """
        data = {
            "router_version": VERSION,
            "features": self.features.plain(),
            "labels": list(self.labels),
            "models": dict(self.models),
            "bias": _short(self.bias),
            "weights": {n: _short(row) for n, row in zip(self.labels, self.weights, strict=True)},
            "texts": dict(self.texts),
            **({"held_out": dict(held_out)} if held_out else {}),
        }
        return json.dumps(data, ensure_ascii=False) + "\n"


def load_router(path: str | Path) -> Router:
    """Read a router file.

    Raises:
        SourceError: it cannot be read.
        DataError: it is not a router file, or a damaged one; all problems are told.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(f"cannot read the router: {error.strerror}", str(path)) from error
    except ValueError as error:
        raise DataError(f"not JSON: {error}", str(path), "fit the router anew") from error
    if problems := _problems(data):
        hint = "fit the router anew with `mergekit-lite moe fit-router`"
        raise DataError([Problem(what, str(path), hint) for what in problems])
    labels = tuple(data["labels"])
    rows = np.array([data["weights"][label] for label in labels], float)
    features = features_of(data["features"])
    bias = np.array(data["bias"], float)
    return Router(labels, data["models"], features, rows, bias, data.get("texts", {}))


def _problems(data: Any) -> list[str]:
    """Return what keeps a value from being a router."""
    if not isinstance(data, dict) or data.get("router_version") != VERSION:
        return [f"not a router file of version {VERSION}"]
    missing = [key for key in SCHEMA["required"] if key not in data]
    if missing:
        return [f"`{key}` is missing" for key in missing]
    features, labels = data["features"], data["labels"]
    if features.get("kind") not in ("ngrams", "embedding"):
        return [f"features of an unknown kind: {features.get('kind')}"]
    size = features.get("buckets")
    problems = []
    for label in labels:
        row = data["weights"].get(label)
        if row is None or (size is not None and len(row) != size) or not _are_numbers(row):
            problems.append(f"weights of label `{label}` are not {size or 'some'} numbers")
        if label not in data["models"]:
            problems.append(f"label `{label}` has no model")
    if len(data["bias"]) != len(labels) or not _are_numbers(data["bias"]):
        problems.append(f"`bias` is not {len(labels)} numbers")
    return problems


def _are_numbers(values: Any) -> bool:
    return all(isinstance(v, int | float) and np.isfinite(v) for v in values)


def _short(values: Array) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
