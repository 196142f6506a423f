"""The output's config.json: the donor's, with the few entries the merge has changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_lite.errors import DataError
from mergekit_lite.plan.types import Plan

CONFIG_DTYPES: Mapping[str, str] = {
    "BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64",
}  # fmt: skip
"""safetensors dtype -> the name a config.json uses."""

DTYPE_KEYS = ("dtype", "torch_dtype")
"""The current spelling and the one of transformers 4; loaders read both."""


def write_config(plan: Plan, root: Path, folder: Path) -> bool:
    """Write the config.json of the output; return False where the donor has none.

    Entries of `plan.config` and the dtype are set, all others keep their place and value. A file
    that needs no change is copied byte for byte.
    """
    source = root / "config.json"
    if not source.is_file():
        return False
    original = source.read_bytes()
    config = parse_config(original, source.name)
    edited = edit_config(config, {"dtype": CONFIG_DTYPES.get(plan.dtype), **plan.config})
    unchanged = json.dumps(edited) == json.dumps(config)
    text = original if unchanged else _text(edited)
    (folder / "config.json").write_bytes(text)
    return True


def parse_config(data: bytes, name: str) -> dict[str, Any]:
    """Return the config in `data`.

    Raises:
        DataError: the bytes are not a JSON object.
    """
    try:
        config = json.loads(data)
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}", name, "repair the donor's config") from None
    if not isinstance(config, dict):
        raise DataError("holds no JSON object", name, "repair the donor's config")
    return config


def edit_config(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `config` with `changes` set where the model keeps those entries.

    A key that only a nested `text_config` holds is set there; a key that no level holds is added
    at the top. `dtype` is set under whichever spelling is there, on every level that names one.
    """
    edited: dict[str, Any] = json.loads(json.dumps(config))
    for key, value in changes.items():
        if key in DTYPE_KEYS:
            if value is not None:
                _set_dtype(edited, str(value))
        else:
            _set(edited, key, value)
    return edited


def config_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the dtype that a config names, on its top level or in its `text_config`."""
    for level in (config, config.get("text_config")):
        if isinstance(level, Mapping):
            for key in DTYPE_KEYS:
                if isinstance(level.get(key), str):
                    return str(level[key]).removeprefix("torch.")
    return None


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    levels = [config, config.get("text_config")]
    holders = [level for level in levels if isinstance(level, dict) and key in level]
    for level in holders or [config]:
        level[key] = value


def _set_dtype(config: dict[str, Any], value: str) -> None:
    nested = [level for key, level in config.items() if key.endswith("_config")]
    named = False
    for level in (config, *nested):
        # A `quantization_config` may hold a dtype of its own, which is not the storage dtype.
        if not isinstance(level, dict) or level is config.get("quantization_config"):
            continue
        for key in DTYPE_KEYS:
            if isinstance(level.get(key), str):
                level[key] = value
                named = True
    if not named:
        config["dtype"] = value


def _text(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
