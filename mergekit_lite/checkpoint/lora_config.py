"""Reads `adapter_config.json` and refuses, by name, what a plain `scale * B @ A` cannot express."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_lite.checkpoint.parse import parse_json
from mergekit_lite.errors import DataError, Problem, RecipeError, SourceError

CONFIG_FILE = "adapter_config.json"

# Field -> what it is. Any value but an empty one means the delta is not scale * B @ A.
_REFUSED_FIELDS: Mapping[str, str] = {
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "arrow_config": "Arrow routing",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "layer replication",
}
# All other initialisations (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) also change the base's weights.
_KNOWN_INITS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LoraConfig:
    """What of `adapter_config.json` decides the delta.

    Attributes:
        raw: the whole file.
        base_model: the model the adapter was trained on, as the file names it.
        transpose: the adapted weights are stored (in x out).
        dora: every adapted weight has its rows scaled to lengths of their own.
        kasa: a diagonal stands between the factors, and the base's smallest values are cut off.
    """

    raw: Mapping[str, Any]
    base_model: str
    transpose: bool
    dora: bool = False
    kasa: bool = False

    def rank(self, module: str) -> int:
        """Return the rank of a module's factors."""
        return int(_by_pattern(self.raw.get("rank_pattern"), module, self.raw["r"]))

    def scale(self, module: str) -> float:
        """Return the factor before B @ A: alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
        alpha = _by_pattern(self.raw.get("alpha_pattern"), module, self.raw["lora_alpha"])
        rank = self.rank(module)
        return float(alpha) / (math.sqrt(rank) if self.raw.get("use_rslora") else rank)

    def parameters_of(self, module: str) -> tuple[str, ...]:
        """Return the bare parameters of a module that are adapted (`target_parameters`)."""
        path = "." + module.replace(".base_layer", "")
        found = []
        for target in self.raw.get("target_parameters") or ():
            owner, _, parameter = target.rpartition(".")
            if path.endswith(f".{owner}") if owner else True:
                found.append(parameter)
        return tuple(sorted(found))

    def token_rows(self, module: str) -> tuple[int, ...]:
        """Return the rows of an embedding, or of its twin, that are trained by themselves."""
        indices = self.raw.get("trainable_token_indices") or ()
        if not isinstance(indices, dict):
            return tuple(indices)
        own = [rows for key, rows in indices.items() if f".{module}".endswith(f".{key}")]
        # A head that is tied to the embedding is trained with it, and has no list of its own.
        return tuple((own or list(indices.values()))[0])


def read_lora_config(folder: Path) -> LoraConfig:
    """Read and check the adapter configuration in `folder`.

    Raises:
        SourceError: there is none.
        DataError: it is malformed.
        RecipeError: it describes an adapter that this version cannot merge; every reason is given.
    """
    path = folder / CONFIG_FILE
    try:
        raw = parse_json(path.read_bytes().strip(), str(path), _DAMAGED)
    except OSError as error:
        raise SourceError(
            f"`{folder}` is not a LoRA adapter: no {CONFIG_FILE}",
            hint="give the folder that PEFT's save_pretrained wrote",
        ) from error
    if problems := [Problem(what, hint=_HINT) for what in _unsupported(raw, path)]:
        raise RecipeError(problems)
    if problems := [Problem(f"`{path}`: {what}", hint=_DAMAGED) for what in _malformed(raw)]:
        raise DataError(problems)
    base = raw.get("base_model_name_or_path")
    return LoraConfig(
        raw,
        base if isinstance(base, str) else "",
        bool(raw.get("fan_in_fan_out")),
        bool(raw.get("use_dora")),
        bool(raw.get("kasa_config")),
    )


_DAMAGED = "the file is damaged or edited: fetch or save the adapter again"
_HINT = "merge it into its base with PEFT's merge_and_unload, and use the result as a model"


def _unsupported(raw: Mapping[str, Any], path: Path) -> list[str]:
    kind = raw.get("peft_type", "LORA")
    if kind != "LORA":
        return [f"`{path}` is an adapter of type {kind}; this version merges LORA only"]
    found = [
        f"`{path}` uses {what} (`{field}`), which is not supported by this version"
        for field, what in _REFUSED_FIELDS.items()
        if raw.get(field)
    ]
    init = raw.get("init_lora_weights", True)
    if init not in _KNOWN_INITS:
        found.append(
            f"`{path}` was initialised by {init} (`init_lora_weights`), which changes the base too"
        )
    return found


def _malformed(raw: Mapping[str, Any]) -> list[str]:
    faults = []
    if type(raw.get("r")) is not int or raw["r"] < 1:
        faults.append(f"`r` is {raw.get('r')!r}, not a positive integer")
    if not _is_number(raw.get("lora_alpha")):
        faults.append(f"`lora_alpha` is {raw.get('lora_alpha')!r}, not a number")
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = raw.get(field) or {}
        if not isinstance(patterns, dict) or not all(map(_is_number, patterns.values())):
            faults.append(f"`{field}` is not a map of numbers")
            continue
        if field == "rank_pattern" and any(value < 1 for value in patterns.values()):
            faults.append("`rank_pattern` has a rank below 1")
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                faults.append(f"`{field}`: {pattern!r} is not a regular expression: {error}")
    targets = raw.get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
        faults.append("`target_parameters` is not a list of names")
    return faults + _malformed_tokens(raw.get("trainable_token_indices") or [])


def _malformed_tokens(indices: object) -> list[str]:
    lists = list(indices.values()) if isinstance(indices, dict) else [indices]
    for rows in lists:
        if not isinstance(rows, list) or not all(type(row) is int and row >= 0 for row in rows):
            return ["`trainable_token_indices` is not a list of token numbers, nor a map of such"]
    return []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first pattern that the end of the module's path matches."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(?:.*\.)?(?:{pattern})$", module):
            return value
    return default
