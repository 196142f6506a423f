from __future__ import annotations

import itertools
import json
import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from mergekit_lite.checkpoint import DTYPE_BYTES, header_text, read_header_bytes
from mergekit_lite.errors import DataError, MergekitLiteError, RecipeError
from tests.calls import calls_of

TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu, "C64": torch.complex64,
}  # fmt: skip

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def blob(header: object, data: int = 8) -> bytes:
    """A file with this header (an object, or JSON text) and `data` zero bytes."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * data


def read(content: bytes) -> dict[str, object]:
    return dict(read_header_bytes(content, "x.safetensors", len(content))[0])


def test_reads_what_the_safetensors_library_writes() -> None:
    content = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}, {"format": "pt"})
    tensors, metadata = read_header_bytes(content, "m.safetensors", len(content))
    assert metadata == {"format": "pt"}
    info = tensors["a"]
    assert (info.dtype, info.shape, info.file, info.nbytes) == ("F32", (2, 3), "m.safetensors", 24)
    stored = content[info.start : info.start + info.nbytes]
    assert torch.frombuffer(bytearray(stored), dtype=torch.float32).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("[1]", "not a JSON object"),
        ('{"a": ', "valid JSON"),
        ('{"a": ' * 3000, "valid JSON"),
        ('{"\\ud800": 1}', "valid Unicode"),
        ('{"a": {"dtype": "F32", "dtype": "F32"}}', "`dtype` appears twice"),
        (f'{{"a": {json.dumps(ENTRY)}, "a": {json.dumps(ENTRY)}}}', "`a` appears twice"),
        ({"__metadata__": {"format": 1}, "a": ENTRY}, "map of strings"),
        ({"__metadata__": ["pt"], "a": ENTRY}, "map of strings"),
        ({"a": [1]}, "exactly dtype, shape"),
        ({"a": {**ENTRY, "more": 1}}, "exactly dtype, shape"),
        ({"a": {**ENTRY, "dtype": "F99"}}, "unknown dtype 'F99'"),
        ({"a": {**ENTRY, "dtype": 7}}, "unknown dtype 7"),
        ({"a": {**ENTRY, "dtype": ["F4"]}}, "unknown dtype ['F4']"),
        ({"a": {**ENTRY, "dtype": None}}, "unknown dtype None"),
        ({"a": {**ENTRY, "shape": 2}}, "not a list"),
        ({"a": {**ENTRY, "shape": [-2]}}, "size -2"),
        ({"a": {**ENTRY, "shape": [2.0]}}, "size 2.0"),
        ({"a": {**ENTRY, "shape": [True, 2]}}, "size True"),
        ({"a": {**ENTRY, "shape": [1 << 40, 1 << 40]}}, "product overflows"),
        ({"a": {**ENTRY, "shape": [1 << 70, 0], "data_offsets": [0, 0]}}, "product overflows"),
        ({"a": {**ENTRY, "data_offsets": [0]}}, "two integers"),
        ({"a": {**ENTRY, "data_offsets": [0, 8.0]}}, "two integers"),
        ({"a": {**ENTRY, "data_offsets": [-8, 0]}}, "out of range"),
        ({"a": {**ENTRY, "data_offsets": [8, 0]}}, "out of range"),
        ({"a": {**ENTRY, "data_offsets": [0, 4]}}, "spans 4 bytes, but F32 [2] needs 8"),
        ({"a": {**ENTRY, "data_offsets": [4, 12]}}, "`a` leaves a gap"),
        ({"a": ENTRY, "b": ENTRY}, "`b` overlaps"),
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, "`b` overlaps"),
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [12, 20]}}, "`b` leaves a gap"),
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [8, 16]}}, "is cut short"),
        ({"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, "4 bytes after its last"),
    ],
)
def test_a_header_that_lies_is_refused_by_name(header: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(blob(header))
    assert message in str(caught.value)
    assert "`x.safetensors`" in str(caught.value)
    assert caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes, too few"),
        (b"\1\0\0", "3 bytes, too few"),
        (b"version https://git-lfs.example/spec/v1\noid sha256:0\nsize 1\n", "git-lfs pointer"),
        (b"GGUF\3\0\0\0" + b"\0" * 16, "GGUF file"),
        (b"PK\3\4" + b"\0" * 16, "PyTorch pickle"),
        (b"<!doctype html><html></html>", "web page"),
        ((100_000_001).to_bytes(8, "little") + b"{", "the format allows 100,000,000"),
        ((1000).to_bytes(8, "little") + b"{}", "cut short: its header needs 1,008 bytes"),
    ],
)
def test_a_file_of_another_kind_is_recognised(content: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(content)
    assert message in str(caught.value)
    assert caught.value.problems[0].hint


def test_metadata_may_be_null() -> None:
    content = blob({"__metadata__": None, "a": ENTRY})
    assert read_header_bytes(content, "x", len(content))[1] == {}


def test_a_truncated_file_is_told_with_both_sizes() -> None:
    content = save({"a": torch.zeros(100)})
    with pytest.raises(DataError, match=f"{len(content):,} bytes, the file has {300:,}"):
        read_header_bytes(content[:300], "x", 300)


def test_a_quantised_dtype_of_the_format_is_refused_as_quantised() -> None:
    entry = {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}
    with pytest.raises(RecipeError, match="quantised dtype F4"):
        read(blob({"a": entry}, 2))


@settings(max_examples=200)
@given(st.data())
def test_damage_anywhere_gives_one_of_our_errors_or_a_sound_layout(data: st.DataObject) -> None:
    content = bytearray(save({"a": torch.zeros(3), "b": torch.zeros(2, 2, dtype=torch.int8)}))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 17))] = data.draw(st.integers(0, 255))
    try:
        found = read_header_bytes(bytes(content), "x", len(content))[0]
    except MergekitLiteError:
        return
    ends = sorted((info.start, info.start + info.nbytes) for info in found.values())
    assert ends[-1][1] == len(content)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(ends))


names = st.text(
    st.one_of(
        st.sampled_from(string.ascii_letters + '."\\\n\x01é漢😀'), st.characters(codec="utf-8")
    ),
    min_size=1,
    max_size=12,
).filter(lambda name: name != "__metadata__")


@settings(max_examples=60)
@given(
    st.dictionaries(
        names,
        st.tuples(
            st.sampled_from(sorted(TORCH)), st.lists(st.integers(0, 4), max_size=3).map(tuple)
        ),
        max_size=8,
    ),
    st.sampled_from([{}, {"format": "pt"}]),
)
def test_layout_equals_the_safetensors_library_byte_for_byte(
    tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> None:
    assert TORCH.keys() == DTYPE_BYTES.keys()
    values = {
        name: torch.randint(0, 2, shape, dtype=torch.uint8).to(TORCH[dtype])
        for name, (dtype, shape) in tensors.items()
    }
    theirs = save(values, metadata or None)
    rows = [(name, dtype, shape) for name, (dtype, shape) in tensors.items()]
    text, starts, nbytes = header_text(rows, metadata)
    head = len(text.encode()).to_bytes(8, "little") + text.encode()
    assert theirs[: len(head)] == head
    assert len(theirs) == nbytes
    found, _ = read_header_bytes(theirs, "x", nbytes)
    assert [found[name].start for name, _, _ in rows] == starts


def test_own_layout_is_read_by_the_safetensors_library() -> None:
    rows = [("b", "F32", (2,)), ("a", "BF16", (1,)), ("c", "I64", (1,))]
    text, starts, nbytes = header_text(rows, {"z": "1", "format": "pt"})
    content = bytearray(nbytes)
    content[: 8 + len(text)] = len(text).to_bytes(8, "little") + text.encode()
    content[starts[0] : starts[0] + 8] = torch.tensor([1.5, -2.0]).numpy().tobytes()
    found = load(bytes(content))
    assert found["b"].tolist() == [1.5, -2.0]
    assert starts[2] < starts[0] < starts[1]


def test_each_tensor_takes_the_same_work_however_many_there_are() -> None:
    def work(tensors: int) -> int:
        rows = [
            (f"model.layers.{i % 60}.mlp.experts.{i}.w1.weight", "BF16", (64, 64))
            for i in range(tensors)
        ]
        text, _, nbytes = header_text(rows, {"format": "pt"})
        content = len(text).to_bytes(8, "little") + text.encode()
        return calls_of(lambda: read_header_bytes(content, "x", nbytes))

    assert work(4000) < 4.1 * work(1000)
