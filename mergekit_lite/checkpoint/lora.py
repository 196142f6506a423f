"""Reads a PEFT LoRA adapter as factors per base tensor; no delta is ever made here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_lite.checkpoint._types import FLOAT_DTYPES, Header, TensorInfo
from mergekit_lite.checkpoint.folder import ADAPTER_FILE, PICKLE_SUFFIXES, read_files
from mergekit_lite.checkpoint.lora_config import LoraConfig, read_lora_config
from mergekit_lite.errors import DataError, Problem, RecipeError, SourceError

_MERGE_IT = "merge the adapter with PEFT and use the result as a model"
_PREFIX = "base_model.model."
# Raw state dicts and older files still carry the adapter's own name, such as `default`.
_LINEAR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.\w+)?\.weight")
_EMBEDDING = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<factor>[AB])(?:\.\w+)?")
_WHOLE = re.compile(r"(?P<module>.+?)(?:\.modules_to_save(?:\.\w+)?)?\.(?P<leaf>weight|bias)")


@dataclass(frozen=True, slots=True)
class LoraFactors:
    """A low-rank delta `scale * B @ A`, kept as its two factors.

    Attributes:
        a: name of the (rank x in) factor in the adapter's file.
        b: name of the (out x rank) factor.
        scale: alpha / rank, or alpha / sqrt(rank) for rsLoRA.
        transpose: the weight is stored (in x out): GPT-2's Conv1D, and every embedding.
    """

    a: str
    b: str
    scale: float
    transpose: bool = False


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter, as far as headers tell.

    Attributes:
        header: the tensors of the adapter's file.
        factors: base tensor name -> the factors of its delta.
        replaced: base tensor name -> adapter tensor that stands in its place (modules_to_save).
        config: `adapter_config.json`.
        base_model: the model it was trained on, as that file names it; may be empty.
    """

    header: Header
    factors: Mapping[str, LoraFactors]
    replaced: Mapping[str, str]
    config: Mapping[str, Any]
    base_model: str

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that the base tensor `name` must have for this adapter to fit."""
        if name in self.replaced:
            return self.header.tensors[self.replaced[name]].shape
        factors = self.factors[name]
        wide = self.header.tensors[factors.a].shape[1]
        tall = self.header.tensors[factors.b].shape[0]
        return (wide, tall) if factors.transpose else (tall, wide)


def read_adapter(folder: Path) -> Adapter:
    """Read the LoRA adapter in `folder`, headers only.

    Linear and embedding LoRA, rsLoRA, rank_pattern, alpha_pattern, fan_in_fan_out and
    modules_to_save are honoured.

    Raises:
        RecipeError: the adapter needs what this version cannot do (DoRA, biases, ...); all of it
            is named.
        DataError: file and configuration are damaged or disagree.
        SourceError: there is no adapter.
    """
    config = read_lora_config(folder)
    _require_weights(folder)
    header = read_files(folder, [ADAPTER_FILE])
    pairs: dict[tuple[str, bool], dict[str, TensorInfo]] = {}
    replaced: dict[str, str] = {}
    unknown: list[Problem] = []
    for name, info in header.tensors.items():
        key = name.removeprefix(_PREFIX)
        if match := _LINEAR.fullmatch(key) or _EMBEDDING.fullmatch(key):
            pair = (match["module"], match.re is _EMBEDDING)
            pairs.setdefault(pair, {})[match["factor"]] = info
        elif reason := _refusal(key):
            unknown.append(Problem(f"`{folder}`: `{name}` {reason[0]}", hint=reason[1]))
        elif match := _WHOLE.fullmatch(key):
            replaced[f"{match['module']}.{match['leaf']}"] = name
        else:
            unknown.append(
                Problem(
                    f"`{folder}`: `{name}` is no LoRA factor and no saved module",
                    hint=_MERGE_IT,
                )
            )
    if unknown:
        raise RecipeError(unknown)
    return Adapter(header, _factors(folder, pairs, config), replaced, config.raw, config.base_model)


def _require_weights(folder: Path) -> None:
    if (folder / ADAPTER_FILE).is_file():
        return
    pickles = [p.name for p in sorted(folder.iterdir()) if p.name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise RecipeError(
            f"`{folder}` holds its adapter as a pickle (`{pickles[0]}`), which can run code",
            hint="load it with PEFT and save it again: that writes safetensors",
        )
    raise SourceError(
        f"`{folder}` has no {ADAPTER_FILE}", hint="fetch the adapter's weights into the folder"
    )


def _refusal(key: str) -> tuple[str, str] | None:
    """Return why a tensor that looks like a saved module is not one, and what to do."""
    if ".base_layer." in key:
        return (
            "is a copy of the base's weight under a LoRA; not supported by this version",
            "save the adapter with save_embedding_layers=False if the vocabulary is unchanged",
        )
    if re.search(r"\.lora_[A-Za-z_]+|\.token_adapter\.", key):
        return (
            "belongs to a LoRA variant that is not supported by this version",
            _MERGE_IT,
        )
    return None


def _factors(
    folder: Path, pairs: Mapping[tuple[str, bool], Mapping[str, TensorInfo]], config: LoraConfig
) -> dict[str, LoraFactors]:
    found: dict[str, LoraFactors] = {}
    faults: list[Problem] = []
    refused: list[Problem] = []
    for (module, embedding), pair in pairs.items():
        if pair.keys() != {"A", "B"}:
            present = next(iter(pair.values())).name
            hint = "the adapter's weights are not whole: fetch or save the adapter again"
            faults.append(Problem(f"`{folder}`: `{present}` has no partner factor", hint=hint))
            continue
        a, b = pair["A"], pair["B"]
        if len(a.shape) != 2 or len(b.shape) != 2:
            what = f"`{folder}`: LoRA on a convolution (`{module}`), not supported"
            refused.append(Problem(what, hint=_MERGE_IT))
        elif not {a.dtype, b.dtype} <= FLOAT_DTYPES:
            what = f"`{folder}`: `{module}` has factors of {a.dtype}, {b.dtype}, not floats"
            refused.append(Problem(what, hint=_MERGE_IT))
        elif not a.shape[0] == b.shape[1] == config.rank(module):
            faults.append(
                Problem(
                    f"`{folder}`: `{module}` has factors {a.shape} and {b.shape}, "
                    f"the configuration says rank {config.rank(module)}",
                    hint="weights and adapter_config.json are of different adapters",
                )
            )
        else:
            transpose = embedding or config.transpose
            name = f"{module}.weight"
            found[name] = LoraFactors(a.name, b.name, config.scale(module), transpose)
    if faults:
        raise DataError(faults)
    if refused:
        raise RecipeError(refused)
    return found
