"""Summarise a checkpoint from its headers and its config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from mergekit_lite.checkpoint import TensorInfo, layer_count, role_of

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

CONFIG_KEYS = ("architectures", "model_type", "tie_word_embeddings", "quantization_config")


@dataclass(frozen=True)
class Count:
    """Tensors of one kind: how many, with how many entries and bytes."""

    tensors: int = 0
    entries: int = 0
    nbytes: int = 0

    def plus(self, info: TensorInfo) -> Count:
        """Return the count with one more tensor."""
        return Count(self.tensors + 1, self.entries + info.size, self.nbytes + info.nbytes)


@dataclass(frozen=True)
class Summary:
    """What the headers of a checkpoint say.

    Attributes:
        kind: `checkpoint` or `adapter`.
        total: of all tensors.
        layers: number of layers.
        files: weight file -> bytes.
        dtypes: dtype -> count.
        roles: role -> count.
        config: entries of the config that decide how the weights are read.
        adapter: base, rank, alpha and number of adapted tensors, of an adapter.
        warnings: oddities of the files.
    """

    kind: str
    total: Count
    layers: int
    files: Mapping[str, int]
    dtypes: Mapping[str, Count]
    roles: Mapping[str, Count]
    config: Mapping[str, Any]
    adapter: Mapping[str, Any]
    warnings: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """Return the summary as JSON-able data."""
        return asdict(self)


def summarise(model: Model) -> Summary:
    """Return the summary of a checkpoint or an adapter."""
    tensors = model.header.tensors.values()
    config = model.config or {}
    adapter: dict[str, Any] = {}
    if model.adapter is not None:
        found = model.adapter
        adapter = {
            "base": found.base_model,
            "rank": found.config.get("r"),
            "alpha": found.config.get("lora_alpha"),
            "adapted": len(found.factors),
            "replaced": len(found.replaced),
        }
    return Summary(
        kind=model.kind,
        total=_count(tensors),
        layers=layer_count(model.header.tensors),
        files=dict(model.header.files),
        dtypes=_grouped((_dtype(info), info) for info in tensors),
        roles=_grouped((role_of(info.name), info) for info in tensors),
        config={key: config[key] for key in CONFIG_KEYS if key in config},
        adapter=adapter,
        warnings=tuple(model.header.warnings),
    )


def matching(model: Model, pattern: str) -> list[TensorInfo]:
    """Return the tensors whose name matches a glob, in the order of their files."""
    found = model.header.tensors.values()
    return [info for info in found if fnmatchcase(info.name, pattern)]


def _count(tensors: Iterable[TensorInfo]) -> Count:
    total = Count()
    for info in tensors:
        total = total.plus(info)
    return total


def _dtype(info: TensorInfo) -> str:
    """Return a tensor's dtype; for codes what they are and what they are read as."""
    return info.dtype if info.coded is None else f"{info.coded.form} as {info.dtype}"


def _grouped(pairs: Iterable[tuple[str, TensorInfo]]) -> dict[str, Count]:
    counts: dict[str, Count] = {}
    for key, info in pairs:
        counts[key] = counts.get(key, Count()).plus(info)
    return dict(sorted(counts.items()))
