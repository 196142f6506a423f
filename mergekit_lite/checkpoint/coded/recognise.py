"""Tells quantised checkpoints from plain ones, and shows known ones as the plain ones they mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mergekit_lite.checkpoint._types import Header, TensorInfo
from mergekit_lite.checkpoint.coded.layouts import LayoutError, Stored, found_in, view_of
from mergekit_lite.checkpoint.coded.settings import Settings, settings_of

METHODS = ("fp8", "fbgemm_fp8", "modelopt", "compressed-tensors", "mxfp4")
"""Values of `quant_method` whose layouts are read; what is stored decides which of them."""

# Names that only one family of methods gives to what it stores.
_FOREIGN = {
    "gptq or awq": re.compile(r".*\.(qweight|qzeros)"),
    "bitsandbytes": re.compile(r".*\.(absmax|quant_map|SCB|nested_absmax)|.*\.quant_state\..*"),
}
# Beside codes, but about activations and caches: plain weights have no use for them.
_ACTIVATIONS = re.compile(
    r".*(^|[._])(input|activation|output|q|k|v)_(global_)?(scale|zero_point)(_inv|_ub)?"
)
_BESIDE = ("_scale", "_scale_inv", "_scales", "_zero_point", "_g_idx", "_shape", "_global_scale")
_FLOATS_PLACE = re.compile(r"(.*[._])?weight")
_ORPHAN = re.compile(
    r"(.*[._])?weight_(scale|scale_inv|scales|zero_point|g_idx|packed|global_scale)"
)
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")
_SHOWN = 3
_UNKNOWN = "that format is not supported"


@dataclass(frozen=True)
class Reading:
    """A checkpoint as a merge sees it.

    Attributes:
        header: its tensors; quantised ones as the floats that they stand for.
        format: name of the quantisation, empty for plain weights.
        faults: why it cannot be read, in words; the header is then as stored.
    """

    header: Header
    format: str = ""
    faults: tuple[str, ...] = ()


def as_plain(header: Header, config: Mapping[str, Any] | None) -> Reading:
    """Return how a checkpoint is read, from its headers and its config alone."""
    settings = settings_of(config)
    if settings.method and settings.method not in METHODS:
        return Reading(header, settings.method, (_UNKNOWN,))
    if settings.more:
        return Reading(header, f"{settings.method} {settings.more}", (_UNKNOWN,))
    for method, pattern in _FOREIGN.items():
        name = next((name for name in header.tensors if pattern.fullmatch(name)), "")
        if name:
            return Reading(header, method, (f"{_UNKNOWN} (it has `{name}`)",))
    return _read(header, settings)


def _read(header: Header, settings: Settings) -> Reading:
    views: dict[str, TensorInfo] = {}  # by the name of the codes
    faults: list[str] = []
    for name, info in header.tensors.items():
        stored = found_in(name, info, header.tensors)
        if stored is None:
            continue
        try:
            views[name] = _view(stored, settings)
        except LayoutError as error:
            faults.append(str(error))
    stems = {view.name for view in views.values()}
    gone = {stem + suffix for stem in stems for suffix in _BESIDE}
    tensors: dict[str, TensorInfo] = {}
    unknown = []
    for name, info in header.tensors.items():
        if name in views:
            tensors[views[name].name] = views[name]
        elif name in gone or ((views or settings.method) and _ACTIVATIONS.fullmatch(name)):
            continue
        else:
            tensors[name] = info
            if not faults and _is_code(name, info):
                unknown.append(f"`{name}` is {info.dtype}")
            elif not faults and _ORPHAN.fullmatch(name):
                unknown.append(f"`{name}` is a part of none")
    if unknown:
        faults.append(f"nothing says what its codes stand for: {few(unknown)}")
    label = _label(views, settings)
    if faults:
        return Reading(header, label or _guess(header), (few(faults, "; "),))
    if not label:
        return Reading(header)
    notes = () if views else (f"config.json says {label}, but no tensor is quantised",)
    plain = replace(header, tensors=tensors, warnings=(*header.warnings, *notes))
    return Reading(plain, label)


def _view(stored: Stored, settings: Settings) -> TensorInfo:
    if stored.stem != stored.codes.name and stored.stem in stored.beside:
        raise LayoutError(f"`{stored.stem}` is stored twice, plain and quantised")
    return view_of(stored, settings)


def _is_code(name: str, info: TensorInfo) -> bool:
    in_place = info.dtype in _INTEGERS and _FLOATS_PLACE.fullmatch(name) is not None
    return info.dtype.startswith("F8_") or in_place


def _label(views: Mapping[str, TensorInfo], settings: Settings) -> str:
    if settings.method == "compressed-tensors":
        return " ".join(filter(None, (settings.method, settings.layout)))
    if settings.method:
        return "fp8" if settings.method == "fbgemm_fp8" else settings.method
    forms = {view.coded.form for view in views.values() if view.coded is not None}
    names = {"E4M3": "fp8", "E5M2": "fp8", "E2M1": "fp4", "I8": "int8"}
    return " and ".join(sorted({names.get(form, "packed") for form in forms}))


def _guess(header: Header) -> str:
    fp8 = any(info.dtype.startswith("F8_") for info in header.tensors.values())
    return "fp8" if fp8 else "packed"


def few(texts: list[str], between: str = ", ") -> str:
    """Return the first of some texts, and how many more there are."""
    rest = len(texts) - _SHOWN
    listed = between.join(texts[:_SHOWN])
    return f"{listed} and {rest} more" if rest > 0 else listed
