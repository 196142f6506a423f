"""What a router sees of a text: hashed n-grams of its bytes, or the mean of embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.errors import DataError

Array = NDArray[np.float64]
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_PRIME = np.uint64(0x100000001B3)


class Features(Protocol):
    """Turns a text into a vector of length 1, or of zeros where it finds nothing in it."""

    @property
    def size(self) -> int:
        """Length of the vector."""

    def of(self, text: str) -> Array:
        """Return the vector of a text, (size,) fp64."""

    def plain(self) -> dict[str, Any]:
        """Return what `features` of a router file says."""


@dataclass(frozen=True)
class Ngrams:
    """Counts of runs of bytes, hashed into buckets.

    The text is folded to lower case, and runs of white space to one space. A run of n bytes b falls
    into the bucket that the upper bits of a 64-bit hash say; one more bit is its sign, so that runs
    which share a bucket cancel out on average. A count c weighs sign(c) * log(1 + |c|).

    Attributes:
        sizes: lengths of runs.
        buckets: a power of two.
    """

    sizes: tuple[int, ...] = (1, 2, 3, 4, 5)
    buckets: int = 8192

    @property
    def size(self) -> int:
        """Number of buckets."""
        return self.buckets

    def of(self, text: str) -> Array:
        """Return the vector of a text, (buckets,)."""
        if not text.strip():
            return np.zeros(self.buckets)
        folded = f" {' '.join(text.casefold().split())} ".encode()
        data = np.frombuffer(folded, np.uint8).astype(np.uint64) + np.uint64(1)
        counts = np.zeros(self.buckets)
        shift = np.uint64(64 - (self.buckets.bit_length() - 1))
        for length in self.sizes:
            if length > len(data):
                continue
            runs = np.full(len(data) - length + 1, length, np.uint64)
            for start in range(length):
                runs = (runs ^ data[start : start + len(runs)]) * _PRIME
            mixed = (runs ^ (runs >> np.uint64(29))) * _FACTOR
            signs = np.where(mixed & np.uint64(1), 1.0, -1.0)
            counts += np.bincount((mixed >> shift).astype(np.int64), signs, self.buckets)
        return _unit(np.sign(counts) * np.log1p(np.abs(counts)))

    def plain(self) -> dict[str, Any]:
        """Return what `features` of a router file says."""
        return {"kind": "ngrams", "sizes": list(self.sizes), "buckets": self.buckets}


@dataclass(frozen=True)
class Embedding:
    """The mean of a model's embeddings of a text's tokens. Needs transformers for the tokenizer.

    Attributes:
        model: as a recipe names it, such as a folder; relative paths start where the program runs.
    """

    model: str

    @property
    def size(self) -> int:
        """Width of the embedding."""
        return int(self._table.shape[1])

    def of(self, text: str) -> Array:
        """Return the vector of a text, (width,)."""
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            return np.zeros(self.size)
        rows: Array = self._table[ids].double().mean(0).numpy()
        return _unit(rows)

    def plain(self) -> dict[str, Any]:
        """Return what `features` of a router file says."""
        return {"kind": "embedding", "model": self.model}

    @cached_property
    def _found(self) -> Any:
        from mergekit_lite.sources import resolve

        return resolve(self.model, relative_to=Path(), kind="checkpoint")

    @cached_property
    def _tokenizer(self) -> Any:
        from mergekit_lite.calibrate.skeleton import require_transformers
        from mergekit_lite.calibrate.tokens import load_tokenizer

        require_transformers("embeddings of texts")
        return load_tokenizer(self._found.root)

    @cached_property
    def _table(self) -> Any:
        from safetensors import safe_open

        from mergekit_lite.checkpoint import role_of

        for file in sorted(self._found.root.glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                for name in sorted(set(opened.keys())):
                    if role_of(name) == "embedding":
                        return opened.get_tensor(name)
        raise DataError("the model has no embedding in a .safetensors file", self.model)


def features_of(plain: Mapping[str, Any]) -> Features:
    """Return the features that a router file describes."""
    if plain["kind"] == "embedding":
        return Embedding(plain["model"])
    return Ngrams(tuple(plain["sizes"]), plain["buckets"])


def matrix(features: Features, texts: Sequence[str]) -> Array:
    """Return the vectors of texts, (texts, size)."""
    return np.stack([features.of(text) for text in texts])


def _unit(vector: Array) -> Array:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else vector
