"""Keeps only the largest entries of an adapter's factors (RoseLoRA's row- and column-wise mask)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.adapters.files import plan_of
from mergekit_lite.adapters.lock import Making
from mergekit_lite.adapters.place import making
from mergekit_lite.checkpoint.spool import Spool
from mergekit_lite.engine.events import Event
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.tiles import as_float32
from mergekit_lite.errors import RecipeError
from mergekit_lite.plan.adapter_config import WEIGHT_FILE

if TYPE_CHECKING:
    from mergekit_lite.sources import Model


def rose_mask(
    model: Model,
    out: Path,
    keep: float,
    *,
    overwrite: bool = False,
    emit: Callable[[Event], None],
) -> dict[str, float]:
    """Write an adapter with the largest entries of each row of A and each column of B alone.

    It is what RoseLoRA (Wang et al. 2024, arXiv 2406.10777) does while it trains, by sensitivity;
    magnitude stands in for that here, which costs quality. What is kept keeps its bits.

    Args:
        model: the adapter.
        out: folder to make.
        keep: part of each row of A, and of each column of B, that is kept; at least one entry.
        overwrite: replace a folder that is there.
        emit: told what the user should know.

    Returns:
        The share of kept entries by tensor.

    Raises:
        RecipeError: it is no adapter, `keep` is out of range, or `out` does not fit.
    """
    if model.adapter is None:
        raise RecipeError(f"`{model.reference}` is no adapter")
    if not 0 < keep <= 1:
        raise RecipeError(f"`keep` is {keep}, not above 0 and at most 1")
    rows, columns = set(), set()
    for factors in model.adapter.factors.values():
        if factors.a:
            rows.add(factors.a)
            columns.add(factors.b)
    for pair in model.adapter.unplaced:
        rows.add(pair.a)
        columns.add(pair.b)
    readers = Readers({"adapter": model})
    kept: dict[str, float] = {}
    models = {"adapter": model}
    made = Making("adapter rose-mask", {"keep": keep}, plan_of(models), models)
    try:
        with making(made, out, overwrite=overwrite, emit=emit) as folder, Spool(folder) as spool:
            for name, info in model.header.tensors.items():
                raw = np.empty(info.nbytes, np.uint8)
                readers.read("adapter", info, 0, raw)
                if name in rows or name in columns:
                    values = np.abs(as_float32(raw, info.dtype)).reshape(info.shape[0], -1)
                    mask = top_of_rows(values if name in rows else values.T, keep)
                    mask = mask if name in rows else mask.T
                    entries = raw.view(f"u{raw.nbytes // max(info.size, 1)}")
                    entries[~mask.reshape(-1)] = 0
                    kept[name] = float(mask.mean())
                spool.add(name, info.dtype, info.shape, raw)
            spool.finish(folder / WEIGHT_FILE, {"format": "pt"})
            shutil.copyfile(model.root / "adapter_config.json", folder / "adapter_config.json")
    finally:
        readers.close()
    return kept


def top_of_rows(magnitudes: NDArray[np.float32], keep: float) -> NDArray[np.bool_]:
    """Return which entries are among the largest of their row; of equal ones the first."""
    width = magnitudes.shape[1]
    count = min(width, max(1, round(keep * width)))
    order = np.argsort(-magnitudes, axis=1, kind="stable")[:, :count]
    mask = np.zeros(magnitudes.shape, np.bool_)
    np.put_along_axis(mask, order, True, axis=1)
    return mask
