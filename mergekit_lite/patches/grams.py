"""What a calibration says of the inputs of each linear layer, for codecs that make use of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import FLOAT_DTYPES, FileReader, Header, read_checkpoint, role_of
from mergekit_lite.engine.events import Event
from mergekit_lite.engine.tiles import as_float32
from mergekit_lite.errors import DataError, Problem, RecipeError
from mergekit_lite.plan.types import Job

KIND = "gram"
"""Name of the folder, in one that `calibrate` has made, in which the matrices are."""


@dataclass(frozen=True)
class Grams:
    """Gram matrices of layers' inputs, by the names of the layers' weights.

    Attributes:
        folder: in which they are; None for none at all.
        header: its tensors.
    """

    folder: Path | None = None
    header: Header | None = None

    def of(self, job: Job) -> NDArray[np.float32] | None:
        """Return the matrix of a row; None where there is none.

        Raises:
            DataError: it is not finite.
        """
        info = self.header.tensors.get(job.name) if self.header is not None else None
        if info is None or self.folder is None or len(job.shape) != 2:
            return None
        raw = np.empty(info.nbytes, np.uint8)
        path = self.folder if self.folder.is_file() else self.folder / info.file
        with FileReader(path) as reader:
            reader.read_into(raw, info.start)
        gram = as_float32(raw, info.dtype).reshape(info.shape)
        if not np.isfinite(gram).all():
            what = f"the calibration holds NaN or infinity for `{job.name}`"
            raise DataError(what, str(self.folder), "measure it again")
        return gram


def read_grams(path: Path, jobs: Iterable[Job], emit: Callable[[Event], None]) -> Grams:
    """Return the Gram matrices of a calibration; only headers are looked at.

    Args:
        path: folder that `calibrate --collect gram` has made, or its subfolder `gram`.
        jobs: the rows that will be compressed.
        emit: told which matrices have no statistic; those are rounded to nearest.

    Raises:
        RecipeError: the statistics are of another model: shapes differ, or none fits.
        SourceError, DataError: there are none, or they are damaged.
    """
    folder = path / KIND if (path / KIND).is_dir() else path
    header = read_checkpoint(folder)
    problems, without, found = [], [], 0
    for job in jobs:
        info = header.tensors.get(job.name)
        if info is None:
            inner = role_of(job.name) not in ("embedding", "head")
            without += [job.name] if len(job.shape) == 2 and inner else []
            continue
        found += 1
        if len(job.shape) == 2 and info.shape != (job.shape[1], job.shape[1]):
            what = f"is {list(info.shape)}, wanted is {[job.shape[1]] * 2}: of another model"
            problems.append(Problem(what, f"{folder}: {job.name}", "calibrate the fine-tune"))
        elif info.dtype not in FLOAT_DTYPES:
            problems.append(Problem(f"is {info.dtype}", f"{folder}: {job.name}", "measure again"))
    if problems:
        raise RecipeError(problems)
    if not found:
        raise RecipeError(
            "holds no statistic of any tensor of this model",
            str(folder),
            "make it with `mergekit-lite calibrate MODEL --collect gram`",
        )
    if without:
        text = f"{len(without)} matrices have no statistic and are compressed without: "
        more = f" and {len(without) - 3} more" if len(without) > 3 else ""
        emit(Event("note", text=text + ", ".join(without[:3]) + more))
    return Grams(folder, header)
