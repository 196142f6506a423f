"""Sorts the tensors of an adapter's file by what they are, by their names alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from mergekit_lite.checkpoint._types import TensorInfo

MERGE_IT = "merge the adapter with PEFT and use the result as a model"
_PREFIX = "base_model.model."
# Raw state dicts and older files still carry the adapter's own name, such as `default`.
_LINEAR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.\w+)?\.weight")
_EMBEDDING = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<factor>[AB])(?:\.\w+)?")
_BIAS = re.compile(r"(?P<module>.+)\.lora_B(?:\.\w+)?\.bias")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.(?!weight$)\w+)?(?:\.weight)?")
_DIAGONAL = re.compile(r"(?P<module>.+)\.lora_diag(?:\.\w+)?")
_TOKENS = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta(?:\.\w+)?")
_UNDER = re.compile(r"(?P<module>.+)\.base_layer\.weight")
_WHOLE = re.compile(
    r"(?P<module>.+?)(?:\.modules_to_save(?:\.\w+)?|\.base_layer)?\.(?P<leaf>weight|bias)"
)
_VARIANTS = re.compile(r"\.lora_[A-Za-z_]+|\.token_adapter\.")


@dataclass
class Module:
    """What the file holds for one module."""

    a: TensorInfo | None = None
    b: TensorInfo | None = None
    embedding: bool = False
    bias: str = ""
    magnitude: str = ""
    diagonal: str = ""
    tokens: str = ""
    under: str = ""


@dataclass
class Parts:
    """The tensors of an adapter's file.

    Attributes:
        modules: what belongs to a module that is adapted.
        whole: base tensor name -> the adapter's tensor in its place.
        unknown: tensors that are none of this, each with why and what to do.
    """

    modules: dict[str, Module] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    unknown: list[tuple[str, str, str]] = field(default_factory=list)

    def of(self, module: str) -> Module:
        """Return what is known of a module, empty at first."""
        return self.modules.setdefault(module, Module())


def sorted_parts(tensors: Mapping[str, TensorInfo]) -> Parts:
    """Return the tensors of an adapter's file by what they are."""
    parts = Parts()
    under: dict[str, str] = {}
    for name, info in tensors.items():
        key = name.removeprefix(_PREFIX)
        if match := _LINEAR.fullmatch(key) or _EMBEDDING.fullmatch(key):
            module = parts.of(match["module"])
            setattr(module, match["factor"].lower(), info)
            module.embedding |= match.re is _EMBEDDING
        elif match := _BIAS.fullmatch(key):
            parts.of(match["module"]).bias = name
        elif match := _MAGNITUDE.fullmatch(key):
            parts.of(match["module"]).magnitude = name
        elif match := _DIAGONAL.fullmatch(key):
            parts.of(match["module"]).diagonal = name
        elif match := _TOKENS.fullmatch(key):
            parts.of(match["module"]).tokens = name
        elif match := _UNDER.fullmatch(key):
            under[match["module"]] = name
        elif _VARIANTS.search(key):
            why = "belongs to a LoRA variant that is not supported by this version"
            parts.unknown.append((name, why, MERGE_IT))
        elif match := _WHOLE.fullmatch(key):
            parts.whole[f"{match['module']}.{match['leaf']}"] = name
        else:
            parts.unknown.append((name, "is no LoRA factor and no saved module", MERGE_IT))
    for path, name in under.items():
        if path in parts.modules:
            parts.modules[path].under = name
        else:
            parts.whole[f"{path}.weight"] = name
    return parts
