"""Reads what statistic files hold of a row: Gram matrices, Fishers, importances."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergekit_lite.checkpoint import FileReader, Header, TensorInfo, read_checkpoint
from mergekit_lite.engine.tiles import as_float32
from mergekit_lite.errors import DataError
from mergekit_lite.ops import get
from mergekit_lite.ops._calibration import files_of
from mergekit_lite.plan.types import Job, Step

_SUMMED = 1 << 22
_lock = threading.Lock()


def calibration_of(job: Job, folder: Path) -> dict[int, Any]:
    """Return the statistics of a row by position of the step that asks.

    An op with calibration has a parameter `file`: a safetensors file with a tensor of the same
    name as the output tensor. A combine gets a list with the tensor of each input, in order.

    Args:
        job: the row.
        folder: where relative paths start from.

    Raises:
        DataError: a file has no such tensor, or one that is not finite.
    """
    return {
        at: _of_step(job, step, folder)
        for at, step in enumerate(job.steps)
        if get(step.op).calibration
    }


def _of_step(job: Job, step: Step, folder: Path) -> Any:
    spec = get(step.op)
    names = [step.expert] if spec.kind == "transform" else [read.source for read in job.reads]
    unit = spec.unit_norm is not None and spec.unit_norm(step.params)
    files = files_of(step.params, names)
    found = [_statistic(folder / files[name], job.name, step.op, unit) for name in names]
    return found if spec.kind == "combine" else found[0]


def _statistic(path: Path, name: str, op: str, unit: bool) -> Tensor:
    header = _header(path, _stamp(path))
    info = header.tensors.get(name)
    if info is None:
        raise DataError(f"`{path.name}` has no statistic for `{name}`", where=op)
    value = _read(path, info)
    if not np.isfinite(value).all():
        raise DataError(
            f"`{path.name}` holds NaN or infinity for `{name}`", op, "measure the statistic again"
        )
    if unit:
        with _lock:  # one worker takes the norm, the others wait for it
            norm = _norm(path, _stamp(path))
        value = value / np.float32(norm) if norm else value
    return torch.from_numpy(value.reshape(info.shape))


def _read(path: Path, info: TensorInfo, first: int = 0, count: int | None = None) -> NDArray[Any]:
    """Return entries of a tensor of a file, in fp32."""
    width = info.nbytes // max(math.prod(info.shape), 1)
    raw = np.empty(info.nbytes if count is None else count * width, np.uint8)
    with FileReader(path if path.is_file() else path / info.file) as reader:
        reader.read_into(raw, info.start + first * width)
    return as_float32(raw, info.dtype)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@lru_cache(64)
def _header(path: Path, stamp: tuple[int, int]) -> Header:
    return read_checkpoint(path)


@lru_cache(64)
def _norm(path: Path, stamp: tuple[int, int]) -> float:
    """Return the L2 norm of all entries of a file, summed exactly over blocks."""
    tensors: Mapping[str, TensorInfo] = _header(path, stamp).tensors
    blocks = []
    for name in sorted(tensors):
        size = math.prod(tensors[name].shape)
        for first in range(0, size, _SUMMED):
            part = _read(path, tensors[name], first, min(_SUMMED, size - first))
            blocks.append(float(np.square(part, dtype=np.float64).sum()))
    return math.sqrt(math.fsum(blocks))
