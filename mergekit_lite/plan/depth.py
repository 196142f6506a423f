"""Rewrites what a config says layer by layer, for an output with other layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mergekit_lite.plan.configs import Config, levels, value
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.stacks import count_keys

_INDICES = re.compile(
    r"^(mlp_only|moe|dense|sparse|cross_attention|global_attention|self_attention|hybrid)_layers?$"
    r"|_(idx|idxs|indices|indexes|layer_ids)$"
)
"""Keys whose value lists layers by number, such as `mlp_only_layers`."""

_NOT_BY_LAYER = re.compile(
    r"^(architectures|id2label|label2id|torch_dtype|auto_map|keys_to_ignore.*|.*token_ids?"
    r"|.*rope_(scaling|parameters|theta)|.*_section|suppress_tokens|begin_suppress_tokens"
    r"|forced_.*|.*_factor|image_.*|patch_size|classifier_.*|norm_(mean|std))$"
)
"""Keys whose lists are of something else, whatever their length."""

_PERIODS = {
    "sliding_window_pattern": "layer_types",
    "_sliding_window_pattern": "layer_types",
    "full_attention_interval": "layer_types",
    "global_attn_every_n_layers": "layer_types",
    "no_rope_layer_interval": "no_rope_layers",
    "interleave_moe_layer_step": "moe_layers",
    "decoder_sparse_step": "",
    "moe_layer_frequency": "",
    "moe_layer_freq": "",
    "attn_layer_period": "layers_block_type",
    "expert_layer_period": "",
    "cross_attention_freq": "",
}
"""Keys that treat every n-th layer otherwise -> the list that says so layer by layer, and wins."""

_LEADING = ("first_k_dense_replace", "num_dense_layers", "max_window_layers")
"""Keys that treat the first layers otherwise."""

_TRAILING = ("num_kv_shared_layers",)
"""Keys that treat the last layers otherwise."""


@dataclass(frozen=True)
class Restack:
    """What has become of the layers of one stack.

    Attributes:
        stack: its name.
        others: the model's other main stacks.
        depth: layers of each input that has a part in it.
        layers: (donor, its layer) for each layer of the output.
        configs: config of each input; an adapter has the base's.
    """

    stack: str
    others: tuple[str, ...]
    depth: Mapping[str, int]
    layers: Sequence[tuple[str, int]]
    configs: Mapping[str, Config]

    @property
    def changed(self) -> bool:
        """Whether any layer differs from that of the base at the same place."""
        same = [(name, layer) == ("base", at) for at, (name, layer) in enumerate(self.layers)]
        return not (all(same) and len(same) == self.depth["base"])


def restacked(restack: Restack, findings: Findings, where: str) -> dict[str, Any]:
    """Return the changes that the base's config needs; a nested part is given whole.

    What cannot be rewritten is noted by its name.
    """
    if not restack.changed:
        return {}
    changes: dict[str, Any] = {}
    base = restack.configs["base"]
    counted = 0
    for part, level in levels(base).items():
        keys = count_keys(level, restack.stack, restack.others)
        if not keys:
            continue
        counted += 1
        writer = _Level(restack, level, findings, where)
        made = {**dict.fromkeys(keys, len(restack.layers)), **writer.changes(keys)}
        changes |= made if not part else {part: {**level, **made}}
    if base and not counted:
        findings.problem(
            f"the base's config names no number of layers for `{restack.stack}`",
            where,
            "a model of another depth would not load; add the number to its config.json",
        )
    return changes


class _Level:
    """A config, or its language model's part, that counts layers."""

    def __init__(
        self, restack: Restack, level: Mapping[str, Any], findings: Findings, where: str
    ) -> None:
        self.restack, self.level, self.findings, self.where = restack, level, findings, where
        self.old = restack.depth["base"]

    def changes(self, counts: Sequence[str]) -> dict[str, Any]:
        """Return what must change besides the counts."""
        made: dict[str, Any] = {}
        for key, now in self.level.items():
            if key in counts or now is None or _NOT_BY_LAYER.match(key):
                continue
            if key in _PERIODS:
                self._check_period(key, now)
            elif key in _LEADING:
                made |= self._leading(key, now)
            elif key in _TRAILING and now:
                self._refuse(key, "counts layers from the end, which share what others compute")
            elif isinstance(now, list):
                made |= self._list(key, now)
            elif isinstance(now, str) and key.endswith("_pattern") and len(now) == self.old:
                made[key] = "".join(self._by_layer(key, now))
        return made

    def _list(self, key: str, now: list[Any]) -> dict[str, Any]:
        if _INDICES.search(key) and self._lists_layers(now):
            return {key: self._indices(key)}
        if len(now) == self.old:
            return {key: self._by_layer(key, now)}
        if not now:
            return {}
        if "layer" in key or "block" in key or key == "attention_types":
            self._refuse(key, f"has {len(now)} entries, the model {self.old} layers")
        return {}

    def _lists_layers(self, now: list[Any]) -> bool:
        whole = all(type(entry) is int and 0 <= entry < self.old for entry in now)
        return whole and all(a < b for a, b in pairwise(now))

    def _by_layer(self, key: str, now: Sequence[Any]) -> list[Any]:
        """Return one entry for each layer of the output, from the config of its donor."""
        return [self._of(name, key, now)[layer] for name, layer in self.restack.layers]

    def _of(self, name: str, key: str, now: Sequence[Any]) -> Sequence[Any]:
        theirs = value(self.restack.configs[name], key)
        depth = self.restack.depth[name]
        if isinstance(theirs, list | str) and len(theirs) == depth:
            return theirs
        if theirs is None and depth == self.old:
            what = (
                f"the config of `{name}` has no `{key}`; its layers are taken to be as the base's"
            )
            self.findings.warn(what, self.where)
            return now
        self._refuse(key, f"is missing, or not one entry a layer, in the config of `{name}`")
        return [now[0]] * depth

    def _indices(self, key: str) -> list[int]:
        found = []
        for at, (name, layer) in enumerate(self.restack.layers):
            theirs = value(self.restack.configs[name], key)
            if theirs is None:
                theirs = []
            if not isinstance(theirs, list):
                self._refuse(key, f"is no list in the config of `{name}`")
            elif layer in theirs:
                found.append(at)
        return found

    def _check_period(self, key: str, now: Any) -> None:
        listed = self.level.get(_PERIODS[key])
        if isinstance(listed, list) and listed:
            return
        if isinstance(now, list):
            self._refuse(key, "is a list here")
            return
        if not isinstance(now, int) or now <= 1:
            return
        others = {value(self.restack.configs[name], key) for name, _ in self.restack.layers}
        moved = any(at % now != layer % now for at, (_, layer) in enumerate(self.restack.layers))
        if moved or others != {now}:
            self._refuse(
                key,
                f"treats every {now}th layer otherwise, and the slices put such layers elsewhere",
            )

    def _leading(self, key: str, now: Any) -> dict[str, Any]:
        explicit = self.level.get("layer_types") or self.level.get("use_sliding_window") is False
        if type(now) is not int or (key == "max_window_layers" and explicit):
            return {}
        own = [value(self.restack.configs[name], key) for name, _ in self.restack.layers]
        first = [
            layer < (now if limit is None else limit)
            for limit, (_, layer) in zip(own, self.restack.layers, strict=True)
        ]
        count = sum(first)
        if not all(first[:count]):
            self._refuse(key, "tells the first layers from the rest, and the slices mix them")
        return {key: max(now, count) if count == len(first) else count}

    def _refuse(self, key: str, why: str) -> None:
        self.findings.problem(
            f"`{key}` of the config cannot be rewritten for these slices: it {why}",
            self.where,
            "loaders would build other layers than are stored; choose slices that keep to it",
        )
