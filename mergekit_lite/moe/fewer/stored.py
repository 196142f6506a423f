"""Which tensors of a routed model belong to which expert, in whatever format they are stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from mergekit_lite.checkpoint import TensorInfo, layer_of
from mergekit_lite.plan import configs

_SINGLE = re.compile(r"(?P<root>.+)\.experts\.(?P<expert>\d+)\.(?P<rest>.+)")
_STACKED = re.compile(r"(?P<root>.+)\.experts\.(?P<rest>.+)")
_PARALLEL = re.compile(r"(?P<root>.+)\.(?P<rest>(input|output)_linear\..+)")
_ROUTERS = ("gate", "router", "moe_statics", "e_score_correction_bias", "expert_bias")
"""First parts of the names, below a routed module, of what has a row for each expert."""


@dataclass
class RoutedModule:
    """The tensors of one routed feed-forward module.

    Attributes:
        root: its name.
        layer: index of its layer, None where its name has none.
        drafts: it belongs to a layer that drafts tokens ahead, which the config does not count.
        single: the tensors of each expert that is stored alone.
        stacked: tensors that hold all experts, one after the other.
        routers: tensors that have a row, or a number, for each expert.
        odd: tensors in which experts cannot be told apart.
    """

    root: str
    layer: int | None
    drafts: bool
    single: dict[int, list[str]] = field(default_factory=dict)
    stacked: list[str] = field(default_factory=list)
    routers: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    experts: int = 0


def modules_of(
    tensors: Mapping[str, TensorInfo], config: configs.Config
) -> dict[str, RoutedModule]:
    """Return the routed modules of a model by name; codes and scales are tensors like others."""
    depth = configs.value(config, "num_hidden_layers")
    found: dict[str, RoutedModule] = {}

    def module(root: str) -> RoutedModule:
        if root not in found:
            layer = layer_of(root)
            beyond = type(depth) is int and layer is not None and layer >= depth
            drafts = beyond or root.startswith("mtp.") or ".mtp." in root
            found[root] = RoutedModule(root, layer, drafts)
        return found[root]

    for name, info in tensors.items():
        if match := _SINGLE.fullmatch(name):
            module(match["root"]).single.setdefault(int(match["expert"]), []).append(name)
        elif match := _stacked(name, info):
            module(match["root"]).stacked.append(name)
    for own in found.values():
        _count(own, tensors)
    for name, info in tensors.items():
        if root := _above(name, found):
            _add_router(found[root], name, info)
    return found


def _stacked(name: str, info: TensorInfo) -> re.Match[str] | None:
    parallel = _PARALLEL.fullmatch(name) if len(info.shape) > 2 else None
    return parallel or _STACKED.fullmatch(name)


def _count(own: RoutedModule, tensors: Mapping[str, TensorInfo]) -> None:
    """Settle how many experts a module has; what disagrees is odd."""
    if own.single:
        own.experts = 1 + max(own.single)
        missing = own.experts - len(own.single)
        if missing or len({len(names) for names in own.single.values()}) > 1:
            own.odd += [names[0] for names in own.single.values()][:1]
    else:
        shapes = [tensors[name].shape for name in own.stacked]
        own.experts = shapes[0][0] if shapes and shapes[0] else 0
    own.odd += [n for n in own.stacked if tensors[n].shape[:1] != (own.experts,)]


def _above(name: str, found: Mapping[str, RoutedModule]) -> str:
    """Return the routed module that a router's tensor lies in, nothing for any other."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        root = ".".join(parts[:end])
        if root in found:
            return root if parts[end] in _ROUTERS else ""
    return ""


def _add_router(own: RoutedModule, name: str, info: TensorInfo) -> None:
    rows = info.shape[0] if info.shape else 0
    if rows == own.experts or info.shape == (1, own.experts):
        own.routers.append(name)
    elif info.shape not in ((), (1,)):
        own.odd.append(name)
