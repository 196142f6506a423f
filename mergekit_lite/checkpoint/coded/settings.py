"""What a model's config.json says about how its weights are quantised."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KEYS = ("quantization_config", "compression_config")
"""Entries of a config under which quantisation is described."""

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Scheme:
    """How the weights of some modules are quantised.

    Attributes:
        targets: names of modules, `re:` and a pattern of them, or names of classes.
        kind: `float` or `int`.
        bits: of a code.
        block: rows and columns that share a scale; 0 stands for all of them.
        symmetric: whether zero is the code for 0.
    """

    targets: tuple[str, ...]
    kind: str
    bits: int
    block: tuple[int, int]
    symmetric: bool = True


@dataclass(frozen=True)
class Settings:
    """Quantisation as a config describes it.

    Attributes:
        method: `quant_method`, empty where the config says nothing.
        layout: the format's name within that method, where there are several.
        block: rows and columns of a block, for `fp8`.
        schemes: those of compressed-tensors.
        dtype: of the numbers that the codes stand for, as safetensors names it.
        more: what is done to weights besides, in words; empty for nothing.
    """

    method: str = ""
    layout: str = ""
    block: tuple[int, int] | None = None
    schemes: tuple[Scheme, ...] = ()
    dtype: str = "BF16"
    more: str = ""

    def schemes_of(self, module: str) -> Sequence[Scheme]:
        """Return the schemes that may hold for a module: those that name it before others."""
        named = [s for s in self.schemes if any(_names(t, module) for t in s.targets)]
        return named or self.schemes


def settings_of(config: Mapping[str, Any] | None) -> Settings:
    """Return what a config says; of entries that are malformed it says nothing."""
    dtype = next((d for scope in _scopes(config) if (d := _dtype(scope))), "BF16")
    for scope in _scopes(config):
        for key in KEYS:
            raw = scope.get(key)
            if isinstance(raw, Mapping) and raw:
                return Settings(
                    method=str(raw.get("quant_method") or _default(key)).lower(),
                    layout=str(raw.get("format") or raw.get("quant_algo") or ""),
                    block=_pair(raw.get("weight_block_size")),
                    schemes=tuple(_schemes(raw.get("config_groups"))),
                    dtype=dtype,
                    more=_more(raw),
                )
    return Settings(dtype=dtype)


def _scopes(config: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    whole = config or {}
    return [whole, *(v for k, v in whole.items() if k not in KEYS and isinstance(v, Mapping))]


def _dtype(scope: Mapping[str, Any]) -> str:
    for key in ("dtype", "torch_dtype"):
        if isinstance(scope.get(key), str):
            return _DTYPES.get(scope[key].removeprefix("torch."), "")
    return ""


def _more(raw: Mapping[str, Any]) -> str:
    transform, sparsity = raw.get("transform_config"), raw.get("sparsity_config")
    if isinstance(transform, Mapping) and transform.get("config_groups"):
        return "with rotated weights (`transform_config`)"
    layout = sparsity.get("format", "dense") if isinstance(sparsity, Mapping) else "dense"
    return "" if layout == "dense" else f"with sparse weights (`{layout}`)"


def _default(key: str) -> str:
    return "compressed-tensors" if key == "compression_config" else "an unnamed method"


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, Sequence) and len(value) == 2 and all(type(n) is int for n in value):
        return (value[0], value[1]) if min(value) > 0 else None
    return None


def _schemes(groups: Any) -> Iterator[Scheme]:
    if not isinstance(groups, Mapping):
        return
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            continue
        targets = group.get("targets")
        yield Scheme(
            tuple(map(str, targets)) if isinstance(targets, list) else (),
            str(weights.get("type", "int")),
            _whole(weights.get("num_bits")),
            _block(weights),
            weights.get("symmetric") is not False,
        )


def _block(weights: Mapping[str, Any]) -> tuple[int, int]:
    strategy, group = weights.get("strategy"), _whole(weights.get("group_size"))
    if strategy == "block":
        return _pair(weights.get("block_structure")) or (0, 0)
    if group > 0:
        return 1, group
    return (1, 0) if strategy in ("channel", "group") else (0, 0)


def _whole(value: Any) -> int:
    return value if type(value) is int else 0


def _names(target: str, module: str) -> bool:
    if not target.startswith("re:"):
        return target == module
    try:
        return re.match(target[3:], module) is not None
    except re.error:
        return False
