"""Which tensors a GGUF file has, of what each is made, and in which type it is stored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mergekit_lite.checkpoint import FLOAT_DTYPES, TensorInfo
from mergekit_lite.export.gguf.families import Family, key_heads

TYPES = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0")
"""Types that are written; those of K and I quantisation are llama.cpp's own tool's."""

_EXPERT = re.compile(r"(?P<root>.+\.experts)\.(?P<expert>\d+)\.(?P<part>\w+)\.weight")
_NOT_STORED = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$|\.attn\.bias$")
_TABLES = ("token_embd.weight", "output.weight")


class LayoutError(ValueError):
    """Tensors that have no place in a GGUF file; the text says which."""


@dataclass
class Target:
    """A tensor of a GGUF file.

    Attributes:
        name: as llama.cpp calls it.
        shape: outermost dimension first.
        type: in which it is stored, as gguf calls it.
        stored: the tensors of the checkpoint that it is made of, one after the other.
        heads: of a matrix whose heads are ordered anew, how many there are; else 0.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    stored: list[str] = field(default_factory=list)
    heads: int = 0


@dataclass
class Layout:
    """All tensors of a file, and those that are stored in a finer type than asked for."""

    targets: list[Target]
    finer: list[str]


def lay_out(
    tensors: Mapping[str, TensorInfo], family: Family, config: Mapping[str, Any], wanted: str
) -> Layout:
    """Return the tensors of a GGUF file in the order in which they are stored.

    Args:
        tensors: of the checkpoint.
        family: of the model.
        config: its config.json.
        wanted: one of `TYPES`.

    Raises:
        LayoutError: a tensor has no place in the file.
    """
    import gguf

    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.arch)
    names = gguf.get_tensor_name_map(arch, int(config["num_hidden_layers"]))
    found: dict[str, Target] = {}
    finer: list[str] = []
    unknown = []
    for name, info in _ordered(tensors, config):
        match = _EXPERT.fullmatch(name)
        stem = name if match is None else f"{match['root']}.{match['part']}.weight"
        known = names.get_name(stem, try_suffixes=(".weight", ".bias"))
        if known is None or info.dtype not in FLOAT_DTYPES:
            unknown.append(name)
            continue
        count = 1 if match is None else int(config[family.experts])
        shape = info.shape if match is None else (count, *info.shape)
        kind = _type_of(known, shape, wanted, finer)
        target = found.setdefault(
            known, Target(known, shape, kind, [], _heads(name, family, config))
        )
        target.stored.append(name)
    if unknown:
        raise LayoutError(
            f"{len(unknown)} tensors have no place in the file, such as `{unknown[0]}`"
        )
    for target in found.values():
        if len(target.shape) == 3 and len(target.stored) != target.shape[0]:
            raise LayoutError(f"`{target.name}` wants {target.shape[0]} experts")
    return Layout(list(found.values()), finer)


def _ordered(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> Iterable[tuple[str, TensorInfo]]:
    """Yield what is stored, experts by number, without a head that is tied."""

    def place(name: str) -> tuple[str, int]:
        match = _EXPERT.fullmatch(name)
        return (f"{match['root']}.{match['part']}", int(match["expert"])) if match else (name, 0)

    tied = config.get("tie_word_embeddings") is True and "model.embed_tokens.weight" in tensors
    for name in sorted(tensors, key=place):
        if not _NOT_STORED.search(name) and not (tied and name == "lm_head.weight"):
            yield name, tensors[name]


def _heads(name: str, family: Family, config: Mapping[str, Any]) -> int:
    if not family.neighbours or not re.search(r"\.[qk]_proj\.", name):
        return 0
    return int(config["num_attention_heads"]) if ".q_proj." in name else key_heads(config)


def _type_of(name: str, shape: tuple[int, ...], wanted: str, finer: list[str]) -> str:
    """Return the type of a tensor: vectors and routers stay whole, tables lose little."""
    import gguf

    if len(shape) == 1 or "ffn_gate_inp" in name:
        return "F32"
    if name in _TABLES and wanted[0] in "QT" and wanted != "Q8_0":
        wanted = "F16" if wanted.startswith("T") else "Q8_0"
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[wanted]]
    if shape[-1] % block:
        if name not in finer:
            finer.append(name)
        return "F16"
    return wanted
