"""Names and tensors of a routed model that loaders trip over."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping

import numpy as np

from mergekit_lite.checkpoint import TensorInfo, layer_count
from mergekit_lite.moe.compat.entries import Told, rows_of
from mergekit_lite.moe.compat.loaders import FUSED_IN_MEMORY_ONLY, LOADERS, READS_FUSED
from mergekit_lite.plan.configs import model_type, value
from mergekit_lite.plan.names import few
from mergekit_lite.sources import Model

_EXPERT = re.compile(r"(?P<root>.+\.experts)\.(?P<expert>\d+)\.(?P<part>\w+)\.weight$")
_FUSED = re.compile(r".+\.experts\.(gate_up_proj|down_proj)$")
_ROUTER = re.compile(r".+\.(mlp|block_sparse_moe)\.gate(\.wg)?\.weight$")
_SIGMOID = re.compile(r".+\.shared_expert_gate\.weight$")


def stored_findings(model: Model, experts: int) -> Iterator[Told]:
    """Yield what names, shapes and small tensors make loaders do."""
    tensors = model.header.tensors
    yield from _fused(model)
    yield from _missing(tensors, experts)
    rows = rows_of(model.config, experts)
    for name, info in tensors.items():
        if _ROUTER.fullmatch(name) and info.shape and info.shape[0] != rows:
            for loader in LOADERS:
                what = f"`{name}` has {info.shape[0]} rows, the config says {rows} experts"
                yield loader, "fails", what, "one of the two is of another model"
            break
    yield from _draft(model)
    yield from _zero_gates(model)


def _fused(model: Model) -> Iterator[Told]:
    family = model_type(model.config)
    names = [name for name in model.header.tensors if _FUSED.fullmatch(name)]
    if not names or family not in FUSED_IN_MEMORY_ONLY:
        return
    for loader in ("vllm", "llama.cpp"):
        if family not in READS_FUSED[loader]:
            yield (
                loader,
                "fails",
                f"`{names[0]}` is a name of transformers' memory, which it does not know",
                "save it again with transformers' `save_pretrained`",
            )


def _missing(tensors: Mapping[str, TensorInfo], experts: int) -> Iterator[Told]:
    found: dict[str, dict[str, set[int]]] = {}
    for name in tensors:
        if match := _EXPERT.fullmatch(name):
            parts = found.setdefault(match["root"], {})
            parts.setdefault(match["part"], set()).add(int(match["expert"]))
    wanted = set(range(experts))
    wrong = [
        f"{root} ({part})"
        for root, parts in found.items()
        for part, numbers in parts.items()
        if numbers != wanted
    ]
    if wrong:
        for loader in LOADERS:
            yield (
                loader,
                "fails",
                f"some experts are missing, or are too many: {few(wrong)}",
                f"each layer needs experts 0 to {experts - 1}",
            )


def _draft(model: Model) -> Iterator[Told]:
    """Yield what becomes of layers for speculative decoding that have no weights."""
    drafts = value(model.config, "num_nextn_predict_layers")
    layers = value(model.config, "num_hidden_layers")
    if not isinstance(drafts, int) or drafts < 1 or not isinstance(layers, int):
        return
    if layer_count(model.header.tensors) <= layers:
        for loader in ("vllm", "llama.cpp"):
            yield (
                loader,
                "fails",
                f"`num_nextn_predict_layers` is {drafts}, and there are no weights of such layers",
                'set "num_nextn_predict_layers": 0',
            )


def _zero_gates(model: Model) -> Iterator[Told]:
    """Yield what becomes of shared experts whose gate is all zero."""
    for name, info in model.header.tensors.items():
        if not _SIGMOID.fullmatch(name) or info.is_made:
            continue
        raw = np.empty(info.nbytes, np.uint8)
        with contextlib.closing(model.open(info.file)) as reader:
            reader.read_into(raw, info.start)
        if not raw.any():
            yield (
                "llama.cpp",
                "fails",
                f"`{name}` is all zero: it takes sigmoid(x) as silu(x) / x, which is 0 / 0",
                "write small random numbers, such as 2^-30, whose sigmoid is a half as well",
            )
            return
