"""Writes a checkpoint as one GGUF file, some rows at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.supplies import supply_of
from mergekit_lite.engine.tiles import float32_of
from mergekit_lite.errors import DataError, RecipeError, ResourceError, nearest
from mergekit_lite.export.gguf.families import (
    FAMILIES,
    SCRIPT,
    ConfigError,
    add_metadata,
    rotation_factors,
)
from mergekit_lite.export.gguf.layout import TYPES, Layout, LayoutError, Target, lay_out
from mergekit_lite.export.gguf.tokens import TokenizerError, Vocabulary, vocabulary
from mergekit_lite.plan.types import Job, Read
from mergekit_lite.sources import resolve

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

CHUNK = 1 << 20
"""Entries that are read and written in one go, about."""
_ONLY = "model"


@dataclass(frozen=True)
class Written:
    """What a file holds: its tensors, its bytes, and what is worth saying of it."""

    tensors: int
    nbytes: int
    notes: tuple[str, ...]


def write_gguf(reference: str, kind: str, out: Path, *, overwrite: bool = False) -> Written:
    """Write a model as a GGUF file, which appears complete or not at all.

    Args:
        reference: of the model: a folder, or what a recipe's `base` may be.
        kind: one of `TYPES`.
        out: the file to make.
        overwrite: replace a file that is there.

    Raises:
        RecipeError: the type, the family, the tokenizer or a tensor cannot be written.
        SourceError: there is no such model.
        DataError: an entry is not finite, or does not fit the type.
        ResourceError: the disk is full, or the package `gguf` is missing.
    """
    _require_package()
    kind = _known_type(kind)
    if out.exists() and not overwrite:
        raise RecipeError(f"`{out}` is there already", hint="choose another name, or --overwrite")
    model = resolve(reference, relative_to=Path())
    layout, tokens = _planned(model, kind)
    partial = out.with_name(f"{out.name}.partial")
    writer = _writer(model, kind, layout, tokens, partial)
    nbytes = sum(_nbytes(target) for target in layout.targets)
    _require_room(nbytes, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    readers = Readers({_ONLY: model})
    try:
        _write(writer, model, layout, readers)
        _settle(partial, out)
    except OSError as error:
        raise ResourceError(f"`{partial}` cannot be written: {error.strerror}") from error
    finally:
        readers.close()
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return Written(len(layout.targets), out.stat().st_size, _notes(layout, tokens, kind))


def _require_package() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        hint = "install it: pip install 'mergekit-lite[gguf]'"
        raise ResourceError("the package `gguf` is not installed", hint=hint) from error


def _known_type(kind: str) -> str:
    found = kind.upper()
    if found in TYPES:
        return found
    if "_K" in found or found.startswith("IQ"):
        hint = f"write F16 or BF16 here, then: llama-quantize FILE.gguf OUT.gguf {found}"
        raise RecipeError(f"`{kind}` is made by llama.cpp's own tool", hint=hint)
    hint = nearest(found, TYPES) or f"known are {', '.join(TYPES)}"
    raise RecipeError(f"no type of GGUF is called `{kind}`", hint=hint)


def _planned(model: Model, kind: str) -> tuple[Layout, Vocabulary | None]:
    """Return what the file will hold, from headers and small files alone."""
    if model.kind != "checkpoint" or model.unreadable or model.config is None:
        what = "has no config.json" if model.config is None else "is no model that can be read"
        raise RecipeError(f"`{model.reference}` {what}", hint="name a model's folder")
    name = str(model.config.get("model_type"))
    family = FAMILIES.get(name)
    if family is None:
        hint = f"known are {', '.join(FAMILIES)}; {SCRIPT}"
        raise RecipeError(f"a `{name}` model is not written as GGUF", model.reference, hint)
    if family.experts:
        _check_routing(model)
    try:
        layout = lay_out(model.header.tensors, family, model.config, kind)
        return layout, vocabulary(model.root, int(model.config["vocab_size"]))
    except (ConfigError, LayoutError, TokenizerError) as error:
        raise RecipeError(f"`{model.reference}`: {error}", hint=SCRIPT) from error


def _check_routing(model: Model) -> None:
    """Refuse a routed model that llama.cpp would compute otherwise."""
    from mergekit_lite.moe.compat import check_model

    verdict = check_model(model).verdict("llama.cpp")
    if verdict not in ("same", "unknown"):
        what = f"llama.cpp computes this model otherwise ({verdict})"
        raise RecipeError(what, model.reference, "`mergekit-lite moe check-compat` says why")


def _writer(model: Model, kind: str, layout: Layout, tokens: Vocabulary | None, path: Path) -> Any:
    """Return a `GGUFWriter` that knows all but the numbers."""
    import gguf

    config = model.config or {}
    family = FAMILIES[str(config["model_type"])]
    writer = gguf.GGUFWriter(path, family.arch)
    writer.add_name(model.root.name)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    try:
        add_metadata(writer, family, config)
        factors = rotation_factors(config)
    except ConfigError as error:
        raise RecipeError(f"`{model.reference}`: {error}", hint=SCRIPT) from error
    _add_tokens(writer, model, tokens)
    if factors is not None:
        target = Target("rope_freqs.weight", factors.shape, "F32")
        layout.targets.insert(0, target)
    for target in layout.targets:
        raw = gguf.GGMLQuantizationType[target.type]
        shape = gguf.quant_shape_to_byte_shape(target.shape, raw)
        writer.add_tensor_info(target.name, shape, np.dtype(np.uint8), _nbytes(target), raw)
    return writer


def _add_tokens(writer: Any, model: Model, tokens: Vocabulary | None) -> None:
    import gguf

    if tokens is None:
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_tokenizer_model(tokens.model)
    writer.add_token_list(tokens.tokens)
    writer.add_token_types(tokens.kinds)
    if tokens.pre:
        writer.add_tokenizer_pre(tokens.pre)
    else:
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(tokens.scores)
    special = gguf.SpecialVocab(
        model.root, load_merges=bool(tokens.pre), n_vocab=len(tokens.tokens)
    )
    special.add_to_gguf(writer, quiet=True)


def _nbytes(target: Target) -> int:
    import gguf

    shape = gguf.quant_shape_to_byte_shape(target.shape, gguf.GGMLQuantizationType[target.type])
    return int(np.prod(shape, dtype=np.int64))


def _require_room(nbytes: int, out: Path) -> None:
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if nbytes > free:
        what = f"the file needs {nbytes:,} bytes of disk, {free:,} are free"
        raise ResourceError(what, str(out), "free some space, or write to another disk")


def _write(writer: Any, model: Model, layout: Layout, readers: Readers) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    try:
        writer.write_padding(file, file.tell())
        for target in layout.targets:
            written = 0
            for part in _made(target, model, readers):
                file.write(part.data)
                written += part.nbytes
            writer.write_padding(file, written)
        file.flush()
        os.fsync(file.fileno())
    finally:
        file.close()


def _made(target: Target, model: Model, readers: Readers) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of a tensor, some rows at a time."""
    import gguf

    raw = gguf.GGMLQuantizationType[target.type]
    if not target.stored:
        factors = rotation_factors(model.config or {})
        yield np.ascontiguousarray(factors, np.float32).view(np.uint8)
    for name in target.stored:
        for values in _rows(name, target, model, readers):
            if not np.isfinite(values).all():
                raise DataError(f"`{name}` has entries that are not finite")
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                made = gguf.quantize(values, raw)
            if raw == gguf.GGMLQuantizationType.F16 and not np.isfinite(made).all():
                raise DataError(f"`{name}` has entries beyond what F16 holds", hint="write BF16")
            yield np.ascontiguousarray(made).view(np.uint8).reshape(-1)


def _rows(
    name: str, target: Target, model: Model, readers: Readers
) -> Iterator[NDArray[np.float32]]:
    """Yield rows of a stored tensor in fp32, heads ordered as llama.cpp turns them."""
    info = model.header.tensors[name]
    job = Job(name, info.dtype, info.shape, 0, 0, "copy", ())
    supply = supply_of(Read(_ONLY, name, nbytes=info.nbytes), job, readers)
    if supply is None:
        raise DataError(f"`{name}` cannot be read")
    rows, columns = info.shape[0], info.size // max(info.shape[0], 1)
    head = rows // target.heads if target.heads else 1
    step = max(CHUNK // (columns * head), 1) * head
    if len(info.shape) == 1:
        step, rows, columns = (rows, rows, 1) if target.heads else (1, 1, rows)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        values = float32_of(supply, first * columns, count * columns).reshape(count, columns)
        if target.heads:
            halves = values.reshape(count // head, 2, head // 2, columns)
            values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(count, columns)
        yield values if len(info.shape) > 1 else values.reshape(-1)


def _settle(partial: Path, out: Path) -> None:
    os.replace(partial, out)
    handle = os.open(out.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _notes(layout: Layout, tokens: Vocabulary | None, kind: str) -> tuple[str, ...]:
    found = []
    if layout.finer:
        found.append(
            f"{len(layout.finer)} tensors whose rows are no multiple of {kind}'s block stay F16,"
            f" such as {layout.finer[0]}"
        )
    if tokens is None:
        found.append("there is no tokenizer.json: the file has no vocabulary")
    return tuple(found)
