"""Tensors of more than 2 ** 31 entries: where their parts lie, without any of their bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest

from mergekit_lite import api
from mergekit_lite.checkpoint import TensorInfo
from mergekit_lite.checkpoint.header import header_text
from mergekit_lite.checkpoint.patch import Patch, PatchRow
from mergekit_lite.compress import Encoded, scheme_named
from mergekit_lite.compress._types import in_memory
from mergekit_lite.compress.schemes import codes, factors, masks, rice
from mergekit_lite.compress.survey import largest
from mergekit_lite.kernels.rice import BLOCK
from tests.plan.hollow import llama_config, write

WIDTH, ROWS = 1 << 15, (1 << 16) + 2
BEFORE = 1 << 31
"""Entries before the row that holds what is looked at; that one begins a block of `rice` too."""


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=count).astype(np.float32)


def last(
    small: Encoded, place: Callable[[str, TensorInfo], tuple[int, tuple[int, ...]]], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Decode the same entries alone, and at the end of a tensor of which only they are there.

    Args:
        small: the entries, compressed alone.
        place: of a part the byte at which it begins in the large tensor, and its shape there.
        count: of the entries.
    """
    alone, fetch = in_memory(small, "w", (count // WIDTH, WIDTH))
    one, other = np.empty(count - 7, np.float32), np.empty(count - 7, np.float32)
    scheme_named(small.scheme).decoder(alone, fetch).fill(7, one)
    starts, parts = {}, {}
    for key, info in alone.parts.items():
        starts[info.name], shape = place(key, info)
        parts[key] = replace(info, shape=shape)

    def far(info: TensorInfo, start: int, out: np.ndarray) -> None:
        begin = max(starts[info.name] - start, 0)
        out[:begin] = 0
        small_info = alone.parts[info.name.rpartition(":")[2]]
        fetch(small_info, start + begin - starts[info.name], out[begin:])

    large = replace(alone, shape=(ROWS, WIDTH), parts=parts)
    scheme_named(small.scheme).decoder(large, far).fill(BEFORE + 7, other)
    return one, other


def test_masks() -> None:
    values = noise(2 * WIDTH)
    found = largest(values, 500)
    small = masks.encoded(values, found.threshold, found.ties, scale=0.5)
    size = ROWS * WIDTH // 8
    one, other = last(small, lambda key, info: (BEFORE // 8, (size,)), values.size)
    assert np.count_nonzero(one) > 400
    assert np.array_equal(one, other)


def test_codes() -> None:
    cells = (noise(2 * WIDTH) > 0).astype(np.uint8) * 5 + 1
    scales = np.array([[2], [3]], np.float32)
    small = codes.encoded(cells, 4, scales, WIDTH)

    def place(key: str, info: TensorInfo) -> tuple[int, tuple[int, ...]]:
        if key == "scales":
            return 4 * (ROWS - 2), (ROWS, 1)
        return BEFORE // 2, (ROWS * WIDTH // 2,)

    one, other = last(small, place, cells.size)
    assert set(np.unique(one)) == {-14, -21, -4, -6}
    assert np.array_equal(one, other)


def test_factors() -> None:
    left, right = noise(2 * 3).reshape(2, 3), noise(3 * WIDTH).reshape(3, WIDTH)
    small = factors.encoded(left, right, "float32")

    def place(key: str, info: TensorInfo) -> tuple[int, tuple[int, ...]]:
        return (12 * (ROWS - 2), (ROWS, 3)) if key == "left" else (0, info.shape)

    one, other = last(small, place, 2 * WIDTH)
    assert np.array_equal(one, other)


@pytest.mark.parametrize("signs", [True, False])
def test_rice(signs: bool) -> None:
    assert BEFORE % BLOCK == 0
    assert 2 * WIDTH == BLOCK
    values = noise(2 * WIDTH)
    found = largest(values, 5000)
    kept = (found.threshold, found.kept, found.ties)
    small = rice.encoded(values, *kept, scale=0.25, signs=signs)
    blocks, each, nbytes = BEFORE // BLOCK, 40_000, 70_000
    index = np.tile(np.array([each, nbytes], np.uint32), blocks + 1)
    index[-2:] = small.parts["index"]
    tail = {"codes": blocks * nbytes, "values": 2 * blocks * each}
    assert blocks * nbytes > 1 << 31
    alone, fetch = in_memory(small, "w", (2, WIDTH))
    one, other = np.empty(50_000, np.float32), np.empty(50_000, np.float32)
    scheme_named("rice").decoder(alone, fetch).fill(7, one)

    def far(info: TensorInfo, start: int, out: np.ndarray) -> None:
        key = info.name.rpartition(":")[2]
        if key == "index":
            out[:] = index.view(np.uint8)[start : start + out.size]
        else:
            fetch(alone.parts[key], start - tail[key], out)

    parts = {"index": replace(alone.parts["index"], shape=index.shape)}
    for key, info in alone.parts.items():
        if key != "index":
            width = 1 if key == "codes" else 2
            parts[key] = replace(info, shape=(tail[key] // width + info.size,))
    large = replace(alone, shape=(ROWS, WIDTH), parts=parts)
    scheme_named("rice").decoder(large, far).fill(BEFORE + 7, other)
    assert np.count_nonzero(one) > 3000
    assert np.array_equal(one, other)


def test_a_patch_of_one_is_planned_by_its_header(tmp_path: Path) -> None:
    """Nothing of the four gigabytes is there but the size of the files."""
    name, shape = "model.layers.0.mlp.up_proj.weight", (ROWS, WIDTH)
    size = prod(shape)
    config = llama_config(1, hidden=WIDTH, intermediate=ROWS, vocab=8, tied=True)
    base = write(tmp_path / "base", {name: ("BF16", shape)}, config)
    row = PatchRow("BF16", shape, "0" * 32, "masks", numbers={"scale": 1.0})
    metadata = Patch("compeft", {}, "base", {name: row}).metadata()
    stored = [(f"{name}:{part}", "U8", (size // 8,)) for part in ("minus", "plus")]
    text, _, nbytes = header_text(stored, metadata)
    file = tmp_path / "p.safetensors"
    with file.open("wb") as stream:
        stream.write(len(text.encode()).to_bytes(8, "little") + text.encode())
        stream.truncate(nbytes)
    experts = {"p": str(file)}
    plan = api.plan({"base": str(base), "experts": experts, "steps": ["task_arithmetic"]})
    (job,) = plan.jobs
    assert (job.shape, job.reads[0].nbytes) == (shape, size // 4)
    assert plan.inputs["p"].kind == "patch"
