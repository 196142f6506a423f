"""Where output tensors go."""

from __future__ import annotations

import json
from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.plan.layout import config_changes, lay_out, main_dtype, output_dtype, split
from mergekit_lite.plan.types import Job, Read


def job(name: str, shape: tuple[int, ...], dtype: str = "BF16") -> Job:
    return Job(name, dtype, shape, 0, 0, "copy", (Read("base", name),))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 60))
def test_split_keeps_order_and_fills_no_shard_above_the_limit(sizes: list[int], limit: int) -> None:
    shards = split(sizes, limit)
    assert [i for shard in shards for i in shard] == list(range(len(sizes)))
    for shard in shards:
        assert shard
        assert len(shard) == 1 or sum(sizes[i] for i in shard) <= limit
    for left, right in pairwise(shards):
        assert sum(sizes[i] for i in left) + sizes[right[0]] > limit


def test_a_tensor_larger_than_the_limit_has_its_own_shard() -> None:
    assert split([500, 10, 20, 400, 30], 100) == [[0], [1, 2], [3], [4]]
    assert split([10, 500], 100) == [[0], [1]]


def test_one_shard_is_named_without_a_number() -> None:
    _, shards = lay_out([job("a", (4,)), job("b", (4,))], 1000)
    assert [shard.file for shard in shards] == ["model.safetensors"]
    _, shards = lay_out([job("a", (4,)), job("b", (4,))], 8)
    assert [shard.file for shard in shards] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_a_shard_is_laid_out_as_safetensors_does() -> None:
    tensors = {
        "z.bf16": torch.zeros(3, 5, dtype=torch.bfloat16),
        "a.f16": torch.zeros(7, dtype=torch.float16),
        "m.f32": torch.zeros(2, dtype=torch.float32),
        "i.u8": torch.zeros(9, dtype=torch.uint8),
        "b.bf16": torch.zeros((), dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4, dtype=torch.bfloat16),
        "c.i64": torch.zeros(1, dtype=torch.int64),
    }
    dtypes = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
    dtypes |= {torch.uint8: "U8", torch.int64: "I64"}
    rows = [job(name, tuple(t.shape), dtypes[t.dtype]) for name, t in tensors.items()]
    jobs, (shard,) = lay_out(rows, 10**9)
    header = json.loads(shard.header)
    written = save(tensors, header.pop("__metadata__"))
    length = int.from_bytes(written[:8], "little")
    theirs = json.loads(written[8 : 8 + length])
    # The library writes the metadata's keys in no fixed order; all else is fixed.
    del theirs["__metadata__"]
    assert list(header.items()) == list(theirs.items())
    assert (len(shard.header.encode()), shard.nbytes) == (length, len(written))
    assert [j.start for j in jobs] == sorted(j.start for j in jobs)
    for row in jobs:
        begin, end = json.loads(shard.header)[row.name]["data_offsets"]
        assert row.start == 8 + len(shard.header) + begin
        assert end - begin == prod(row.shape) * DTYPE_BYTES[row.dtype]


def test_only_floats_follow_the_output_dtype() -> None:
    assert output_dtype("BF16", "float32") == "F32"
    assert output_dtype("F64", "bfloat16") == "BF16"
    assert output_dtype("F16", "base") == "F16"
    assert output_dtype("I64", "float16") == "I64"


def test_the_main_dtype_is_that_of_most_float_bytes() -> None:
    rows = [job("a", (100,), "BF16"), job("b", (10,), "F32"), job("c", (1000,), "I64")]
    assert main_dtype(rows) == "BF16"
    assert main_dtype([*rows, job("d", (41,), "F32")]) == "F32"
    assert main_dtype([job("c", (1000,), "I64")]) == "I64"


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ({"torch_dtype": "float16"}, {"torch_dtype": "bfloat16"}),
        ({"dtype": "float16"}, {"dtype": "bfloat16"}),
        (
            {"dtype": "float16", "torch_dtype": "float32"},
            {"dtype": "bfloat16", "torch_dtype": "bfloat16"},
        ),
        ({"torch_dtype": "bfloat16"}, {}),
        ({"hidden_size": 8}, {"torch_dtype": "bfloat16"}),
        (
            {"text_config": {"dtype": "float32", "x": 1}},
            {"text_config": {"dtype": "bfloat16", "x": 1}},
        ),
        (None, {}),
    ],
)
def test_the_config_names_the_dtype_written(config: dict | None, changes: dict) -> None:
    assert config_changes(config, "BF16") == changes
