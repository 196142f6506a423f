"""Splits an adapter off a model where what its inputs look like says (CorDA)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mergekit_lite.adapters.files import plan_of
from mergekit_lite.adapters.lock import Making
from mergekit_lite.adapters.place import making
from mergekit_lite.checkpoint import FLOAT_DTYPES, FileReader, read_checkpoint, role_of
from mergekit_lite.checkpoint.spool import Spool
from mergekit_lite.engine.events import Event
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.tiles import as_float32
from mergekit_lite.errors import DataError, Problem, RecipeError
from mergekit_lite.folders import write_json
from mergekit_lite.plan.adapter_config import PREFIX, WEIGHT_FILE, lora_config

if TYPE_CHECKING:
    from torch import Tensor

    from mergekit_lite.checkpoint import Header
    from mergekit_lite.sources import Model

Method = Literal["ipm", "kpm"]
_DAMP = 0.01
_INVERSE_ERROR = 0.05


def corda_split(
    model: Model,
    grams: Path,
    out: Path,
    *,
    rank: int,
    method: Method = "ipm",
    overwrite: bool = False,
    emit: Callable[[Event], None],
) -> list[str]:
    """Write the adapter that training starts from in CorDA; the model less it is what stays frozen.

    W C = U S V', with C the (damped) Gram matrix of a layer's inputs, gives W = U S (V' C^-1). The
    adapter is the first `rank` of these terms (`ipm`, for what the data ask for) or the last
    (`kpm`, so that what they ask for is left alone); roots of S go to both factors, scale is 1.
    The model without it is a recipe: the adapter at weight -1. Yang et al. 2024, arXiv 2406.05223.

    Args:
        model: the model to split.
        grams: a safetensors file with an (in x in) matrix under the name of each weight.
        out: folder of the adapter.
        rank: of every module.
        method: `ipm` or `kpm`.
        overwrite: replace a folder that is there.
        emit: told what the user should know.

    Returns:
        The modules that were split; linear layers that have no matrix, and the head, are not.

    Raises:
        RecipeError: matrices do not fit the model, the rank is too high, or `out` does not fit.
        DataError: a matrix is not finite.
    """
    import torch

    torch.set_num_threads(1)  # the same digits whatever the machine has
    header = read_checkpoint(grams)
    names = _checked(model, header, grams, rank)
    readers = Readers({"model": model})
    made = _made(model, header, grams, {"rank": rank, "method": method})
    try:
        with making(made, out, overwrite=overwrite, emit=emit) as folder, Spool(folder) as spool:
            for name in names:
                info = header.tensors[name]
                raw = np.empty(info.nbytes, np.uint8)
                with FileReader(grams if grams.is_file() else grams / info.file) as reader:
                    reader.read_into(raw, info.start)
                gram = torch.from_numpy(as_float32(raw, info.dtype).reshape(info.shape)).double()
                weight = torch.from_numpy(readers.tensor("model", name)).double()
                if not (torch.isfinite(gram).all() and torch.isfinite(weight).all()):
                    raise DataError("NaN or infinite entries", where=name)
                b, a = split(weight, gram, rank, method)
                key = f"{PREFIX}{name.removesuffix('.weight')}.lora_{{}}.weight"
                for part, value in (("A", a), ("B", b)):
                    stored = value.float().contiguous().numpy().view(np.uint8).reshape(-1)
                    spool.add(key.format(part), "F32", tuple(value.shape), stored)
            spool.finish(folder / WEIGHT_FILE, {"format": "pt"})
            write_json(folder / "adapter_config.json", _config(model, names, rank))
    finally:
        readers.close()
    return [name.removesuffix(".weight") for name in names]


def split(weight: Tensor, gram: Tensor, rank: int, method: Method) -> tuple[Tensor, Tensor]:
    """Return B and A of the first or last terms of a weight, as its inputs weigh them, in fp64."""
    import torch

    scaled, inverse = _damped(gram)
    u, s, v = torch.linalg.svd(weight @ scaled, full_matrices=False)
    part = slice(0, rank) if method == "ipm" else slice(len(s) - rank, len(s))
    roots = s[part].sqrt()
    return u[:, part] * roots, roots[:, None] * (v[part] @ inverse)


def _damped(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Gram matrix with as much of its mean diagonal added as its inverse needs."""
    import torch

    one = torch.eye(len(gram), dtype=gram.dtype)
    mean = float(gram.diagonal().mean()) or 1.0
    damp = _DAMP
    while True:
        scaled = gram + damp * mean * one
        inverse, failed = torch.linalg.inv_ex(scaled)
        if not failed and float((scaled @ inverse - one).norm()) < _INVERSE_ERROR:
            return scaled, inverse
        damp *= 2


def _checked(model: Model, grams: Header, file: Path, rank: int) -> list[str]:
    """Return the weights that have a matrix; raise all that does not fit."""
    problems, names = [], []
    for name, info in model.header.tensors.items():
        gram = grams.tensors.get(name)
        linear = len(info.shape) == 2 and info.dtype in FLOAT_DTYPES
        if gram is None or not linear or role_of(name) in ("embedding", "head"):
            continue
        wide = info.shape[1]
        if gram.shape != (wide, wide) or gram.dtype not in FLOAT_DTYPES:
            what = f"`{name}` has a matrix of {gram.dtype} {list(gram.shape)}, not {wide} x {wide}"
            problems.append(Problem(what, str(file), "collect it on this model"))
        elif rank > min(info.shape):
            what = f"rank {rank} is more than `{name}` has ({min(info.shape)})"
            problems.append(Problem(what, hint="choose a lower rank"))
        names.append(name)
    if not names:
        hint = "its tensors have the names of the model's weights"
        problems.append(Problem("no linear layer of the model has a matrix", str(file), hint))
    if problems:
        raise RecipeError(problems)
    return names


def _made(model: Model, header: Header, grams: Path, parameters: Mapping[str, Any]) -> Making:
    paths = [grams] if grams.is_file() else [grams / file for file in header.files]
    models = {"model": model}
    statistics = {path.as_posix(): path for path in paths}
    return Making("adapter corda-split", parameters, plan_of(models), models, statistics)


def _config(model: Model, names: list[str], rank: int) -> dict[str, Any]:
    named = (model.config or {}).get("_name_or_path")
    return lora_config(
        {name.removesuffix(".weight"): rank for name in names},
        model.header.tensors,
        rank=rank,
        patterns={},
        saved=(),
        base_model=named if isinstance(named, str) and named else model.reference,
        task_type=None,
    )
