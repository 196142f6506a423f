"""The output's config.json: the donor's, with the few entries the merge has changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_lite.errors import DataError
from mergekit_lite.folders import write_json
from mergekit_lite.plan.configs import NESTED
from mergekit_lite.plan.types import Plan

CONFIG_FILE = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
DTYPE_KEYS = ("dtype", "torch_dtype")
"""The current spelling and the one of transformers 4; loaders read both."""


def write_config(plan: Plan, root: Path, folder: Path) -> bool:
    """Write the config.json of the output; return False where the donor has none.

    Only the entries of `plan.config` change and those of `plan.config_without` go; all others keep
    their place and value. Where none changes, the file is copied byte for byte.
    """
    source = root / CONFIG_FILE
    if not source.is_file():
        return False
    original = source.read_bytes()
    config = parse_config(original, str(source))
    changed = edit_config(config, plan.config)
    edited = {key: value for key, value in changed.items() if key not in plan.config_without}
    text = json.dumps(edited, indent=2, ensure_ascii=False) + "\n"
    (folder / CONFIG_FILE).write_bytes(original if edited == config else text.encode())
    return True


def write_adapter_config(plan: Plan, folder: Path) -> str:
    """Write the `adapter_config.json` of an output that is an adapter; return the file's name."""
    write_json(folder / ADAPTER_CONFIG, dict(plan.adapter))
    return ADAPTER_CONFIG


def parse_config(data: bytes, name: str) -> dict[str, Any]:
    """Return the config in `data`.

    Raises:
        DataError: the bytes are not a JSON object.
    """
    try:
        config = json.loads(data)
    except ValueError as error:
        raise DataError(f"`{name}` is not valid JSON: {error}", hint="repair the file") from None
    if not isinstance(config, dict):
        raise DataError(f"`{name}` holds no JSON object", hint="repair the file")
    return config


def edit_config(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `config` with `changes` set where the model keeps those entries.

    An entry that the nested config of a multimodal model's language part holds is set there too;
    one that no level holds is added at the top.
    """
    edited = dict(config)
    # A nested config that is given whole comes before single entries of it.
    order = sorted(changes, key=lambda key: (not isinstance(changes[key], Mapping), key))
    for key, value in ((key, changes[key]) for key in order):
        inside = [p for p in NESTED if isinstance(config.get(p), Mapping) and key in config[p]]
        for part in inside:
            edited[part] = {**edited[part], key: value}
        if key in config or not inside:
            edited[key] = value
    return edited


def config_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the dtype that a config names, on its top level or else in its `text_config`."""
    for level in (config, config.get("text_config")):
        if isinstance(level, Mapping):
            for key in DTYPE_KEYS:
                if isinstance(level.get(key), str):
                    return str(level[key]).removeprefix("torch.")
    return None
