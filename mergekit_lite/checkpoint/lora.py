"""Reads a PEFT LoRA adapter as factors per base tensor; no delta is ever made here."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

from mergekit_lite.checkpoint._types import FLOAT_DTYPES, Header, TensorInfo
from mergekit_lite.checkpoint.adapter import Adapter, LoraFactors, Unplaced
from mergekit_lite.checkpoint.folder import ADAPTER_FILE, PICKLE_SUFFIXES, read_files
from mergekit_lite.checkpoint.lora_config import LoraConfig, read_lora_config
from mergekit_lite.checkpoint.lora_parts import MERGE_IT, Module, sorted_parts
from mergekit_lite.errors import DataError, Problem, RecipeError, SourceError

_OTHERS = "weights and adapter_config.json are of different adapters"


def read_adapter(folder: Path) -> Adapter:
    """Read the LoRA adapter in `folder`, headers only.

    LoRA of linear layers, embeddings, convolutions and bare parameters, rsLoRA, DoRA, KaSA,
    rank_pattern, alpha_pattern, fan_in_fan_out, biases of both kinds, trainable tokens and
    modules_to_save are honoured.

    Raises:
        RecipeError: the adapter needs what this version cannot do; all of it is named.
        DataError: file and configuration are damaged or disagree.
        SourceError: there is no adapter.
    """
    config = read_lora_config(folder)
    _require_weights(folder)
    header = read_files(folder, [ADAPTER_FILE])
    parts = sorted_parts(header.tensors)
    if parts.unknown:
        raise RecipeError(
            [Problem(f"`{folder}`: `{name}` {why}", hint=hint) for name, why, hint in parts.unknown]
        )
    reading = _Reading(folder, header, config)
    for module, found in parts.modules.items():
        reading.add(module, found)
    reading.require_sound()
    return Adapter(
        header,
        reading.factors,
        parts.whole,
        config.raw,
        config.base_model,
        tuple(reading.unplaced),
    )


def _require_weights(folder: Path) -> None:
    if (folder / ADAPTER_FILE).is_file():
        return
    pickles = [p.name for p in sorted(folder.iterdir()) if p.name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise RecipeError(
            f"`{folder}` holds its adapter as a pickle (`{pickles[0]}`), which can run code",
            hint=f"convert it first: `mergekit-lite convert {folder} -o DIR`",
        )
    raise SourceError(
        f"`{folder}` has no {ADAPTER_FILE}", hint="fetch the adapter's weights into the folder"
    )


class _Reading:
    """Factors of one adapter, collected module by module with all that is wrong with them."""

    def __init__(self, folder: Path, header: Header, config: LoraConfig) -> None:
        self.folder, self.header, self.config = folder, header, config
        self.factors: dict[str, LoraFactors] = {}
        self.unplaced: list[Unplaced] = []
        self._faults: list[Problem] = []
        self._refused: list[Problem] = []

    def require_sound(self) -> None:
        """Raise what was found wrong; damage outranks what is only not supported."""
        if self._faults:
            raise DataError(self._faults)
        if self._refused:
            raise RecipeError(self._refused)

    def add(self, module: str, found: Module) -> None:
        """Enter the factors of one module."""
        a, b = found.a, found.b
        if found.tokens:
            self._tokens(module, found)
        elif a is None or b is None:
            alone = (a.name if a else b.name if b else "", found.bias, found.magnitude)
            present = next(filter(None, alone), found.diagonal)
            hint = "the adapter's weights are not whole: fetch or save the adapter again"
            self._fault(f"`{present}` has no partner factor", hint)
        elif not {a.dtype, b.dtype} <= FLOAT_DTYPES:
            self._refuse(f"`{module}` has factors of {a.dtype}, {b.dtype}, not floats")
        elif parameters := self.config.parameters_of(module):
            path = module.replace(".base_layer", "")
            choice = tuple(
                (name, self.config.rank(f"{path}.{name}"), self.config.scale(f"{path}.{name}"))
                for name in parameters
            )
            self.unplaced.append(Unplaced(path, choice, a.name, b.name))
        else:
            self._pair(module, found, a, b)

    def _pair(self, module: str, found: Module, a: TensorInfo, b: TensorInfo) -> None:
        rank = self.config.rank(module)
        if len(a.shape) != len(b.shape) or len(a.shape) < 2:
            self._fault(f"`{module}` has factors {a.shape} and {b.shape}", _OTHERS)
        elif len(a.shape) > 2 and (prod(b.shape[2:]) != 1 or b.shape[1] < a.shape[0] == rank):
            self._refuse(f"LoRA on a grouped convolution (`{module}`), not supported")
        elif not a.shape[0] == b.shape[1] == rank:
            self._fault(
                f"`{module}` has factors {a.shape} and {b.shape}, the configuration says rank"
                f" {rank}",
                _OTHERS,
            )
        elif self.config.dora != bool(found.magnitude):
            self._differ("DoRA (`use_dora`)", self.config.dora, module, "a magnitude")
        elif self.config.kasa != bool(found.diagonal):
            self._differ("KaSA (`kasa_config`)", self.config.kasa, module, "a diagonal")
        elif self.config.kasa and (found.magnitude or found.under or self.config.transpose):
            self._refuse(f"KaSA of `{module}` together with other variants, not supported")
        else:
            self._enter(module, found, a, b)

    def _enter(self, module: str, found: Module, a: TensorInfo, b: TensorInfo) -> None:
        scale = self.config.scale(module)
        out = b.shape[0]
        whole = LoraFactors(a.name, b.name, scale, found.embedding or self.config.transpose)
        whole = replace(
            whole, magnitude=found.magnitude, diagonal=found.diagonal, under=found.under
        )
        if found.magnitude and prod(self.header.tensors[found.magnitude].shape) != out:
            shape = self.header.tensors[found.magnitude].shape
            self._fault(f"`{found.magnitude}` has shape {shape}, `{b.name}` {out} rows", _OTHERS)
        self.factors[f"{module}.weight"] = whole
        if found.bias:
            self.factors[f"{module}.bias"] = LoraFactors("", found.bias, scale)

    def _tokens(self, module: str, found: Module) -> None:
        rows = self.config.token_rows(module)
        shape = self.header.tensors[found.tokens].shape
        if found.a is not None or found.b is not None:
            self._refuse(f"`{module}` has factors and trainable tokens at once, not supported")
        elif len(shape) != 2 or shape[0] != len(rows):
            self._fault(
                f"`{found.tokens}` has shape {shape}, the configuration names {len(rows)} tokens",
                _OTHERS,
            )
        else:
            self.factors[f"{module}.weight"] = LoraFactors("", found.tokens, 1.0, rows=rows)

    def _differ(self, kind: str, said: bool, module: str, what: str) -> None:
        held = f"`{module}` has {'none' if said else what}"
        self._fault(
            f"the configuration {'says' if said else 'does not say'} {kind}, {held}", _OTHERS
        )

    def _fault(self, what: str, hint: str) -> None:
        self._faults.append(Problem(f"`{self.folder}`: {what}", hint=hint))

    def _refuse(self, what: str) -> None:
        self._refused.append(Problem(f"`{self.folder}`: {what}", hint=MERGE_IT))
