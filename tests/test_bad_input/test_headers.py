"""Weight files whose first bytes are wrong, hostile, or of another kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import LINEAR, World
from .damage import header_of, rewrite

FIRST = "model.embed_tokens.weight"
NORM = "model.norm.weight"


def test_truncated_file(world: World) -> None:
    file = world.math / "model.safetensors"
    whole = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(whole - 1000)
    world.refused(
        3, "recipe.yaml:3:17", str(file), "cut short", f"{whole:,}", f"{whole - 1000:,}", "again"
    )


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "0 bytes, too few"),
        (b"\x10\0\0", "3 bytes, too few"),
        (b"\x00\x10\0\0\0\0\0\0{}", "header needs 4,104 bytes, the file has 10"),
        (b"\x02\0\0\0\0\0\0\0[]", "not a JSON object"),
        (b"\x02\0\0\0\0\0\0\0{,", "valid JSON"),
        (b'\x05\0\0\0\0\0\0\0{"\xff":', "valid JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>log in</html>", "web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle"),
        (b"GGUF\x03\0\0\0" + bytes(64), "GGUF"),
        (b"PK\x03\x04" + bytes(64), "pickle"),
    ],
)
def test_files_that_hold_something_else(world: World, data: bytes, says: str) -> None:
    file = world.math / "model.safetensors"
    file.write_bytes(data)
    world.refused(3, "recipe.yaml:3:17", f"`{file}`", says)


@pytest.mark.parametrize("length", [100_000_001, 1 << 62, (1 << 64) - 1])
def test_header_longer_than_the_format_allows(world: World, length: int) -> None:
    file = world.math / "model.safetensors"
    with file.open("r+b") as stream:
        stream.write(length.to_bytes(8, "little") + b"{")
        # A hole: the file is as long as its header claims, where that is possible at all.
        stream.truncate(min(length + 8, 1 << 30))
    world.refused(3, str(file), f"a header of {length:,} bytes", "100,000,000")


def test_header_of_100_mb_without_content(world: World) -> None:
    file = world.math / "model.safetensors"
    with file.open("r+b") as stream:
        stream.write((100_000_000).to_bytes(8, "little") + b"{")
        stream.truncate(100_000_008)
    world.refused(3, str(file), "valid JSON")


def test_header_of_100_mb_of_padding_is_legal(world: World) -> None:
    file = world.math / "model.safetensors"
    text = json.dumps(header_of(file)).encode()
    data = file.read_bytes()
    weights = data[8 + int.from_bytes(data[:8], "little") :]
    file.write_bytes((100_000_000).to_bytes(8, "little") + text.ljust(100_000_000) + weights)
    assert world.call("check", world.write(LINEAR)).exit_code == 0


def _set(name: str, key: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header[name][key] = value

    return change


def _shift(name: str, by: int) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header[name]["data_offsets"] = [end + by for end in header[name]["data_offsets"]]

    return change


def _twice(header: dict[str, Any]) -> str:
    return json.dumps(header)[:-1] + f', "{NORM}": {json.dumps(header[NORM])}}}'


def _inner_twice(header: dict[str, Any]) -> str:
    return json.dumps(header).replace('"dtype":', '"dtype": "F32", "dtype":', 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_shift(NORM, -64), ("overlaps",)),
        (_shift(NORM, 64), ("gap",)),
        (_set(NORM, "data_offsets", [64, 0]), (NORM, "out of range")),
        (_set(NORM, "data_offsets", [-64, 0]), (NORM, "out of range")),
        (_set(NORM, "data_offsets", [0, 1 << 70]), (NORM, "spans")),
        (_set(NORM, "data_offsets", [0.0, 64.0]), (NORM, "not two integers")),
        (_set(NORM, "shape", [33]), (NORM, "spans 64 bytes", "needs 66")),
        (_set(NORM, "shape", [1 << 40, 1 << 40]), (NORM, "product overflows")),
        (_set(NORM, "shape", [0, 1 << 63]), (NORM, "product overflows")),
        (_set(NORM, "shape", [-1, -32]), (NORM, "-1")),
        (_set(NORM, "shape", [True, 32]), (NORM, "integers")),
        (_set(NORM, "shape", "32"), (NORM, "not a list")),
        (_set(NORM, "dtype", "BF61"), (NORM, "unknown dtype 'BF61'")),
        (_set(NORM, "extra", 1), (NORM, "exactly dtype, shape and data_offsets")),
        (_set("__metadata__", "format", 7), ("`__metadata__`",)),
        (_twice, (f"key `{NORM}` appears twice",)),
        (_inner_twice, ("key `dtype` appears twice",)),
    ],
)
def test_headers_that_lie(
    world: World, change: Callable[[dict[str, Any]], str | None], says: tuple[str, ...]
) -> None:
    file = world.math / "model.safetensors"
    rewrite(file, change)
    world.refused(3, "recipe.yaml:3:17", str(file), *says)


def test_bytes_after_the_last_tensor(world: World) -> None:
    file = world.math / "model.safetensors"
    with file.open("ab") as stream:
        stream.write(b"more")
    world.refused(3, str(file), "4 bytes after its last tensor")


def test_damage_of_all_models_is_told_at_once(world: World) -> None:
    for folder in (world.base, world.math, world.code):
        (folder / "model.safetensors").write_bytes(b"")
    said = world.refused(3, "error: 3 problems", "recipe.yaml:1:7")
    assert said.count("too few") == 3


def test_damage_of_a_single_file_model(world: World) -> None:
    file = world.folder / "weights.safetensors"
    file.write_bytes(b"\0" * 4)
    world.refused(3, f"`{file}`", text=LINEAR.replace("model: math", f"model: {file.name}"))


@pytest.mark.parametrize("verb", ["inspect", "diff"])
def test_other_verbs_refuse_damage_too(world: World, verb: str) -> None:
    file = world.math / "model.safetensors"
    rewrite(file, _shift(NORM, 64))
    before = world.files()
    words = [world.math] if verb == "inspect" else [world.base, world.math]
    world.said(world.call(verb, *words), 3, str(file), "gap")
    world.untouched(before)


def test_fp8_tensor(world: World) -> None:
    def change(header: dict[str, Any]) -> None:
        header[FIRST]["dtype"] = "F8_E4M3"
        header[FIRST]["shape"] = [64, 64]

    rewrite(world.math / "model.safetensors", change)
    world.refused(2, "recipe.yaml:3:9", "quantised", "fp8", FIRST, "F8_E4M3", "16-bit")


def test_sub_byte_tensor(world: World) -> None:
    rewrite(world.math / "model.safetensors", _set(FIRST, "dtype", "F4"))
    world.refused(2, "quantised dtype F4", FIRST, "16-bit")


def test_a_file_that_shrinks_while_it_is_read(world: World) -> None:
    _cut_after_planning(world, world.math / "model.safetensors")
    result = world.run()
    world.said(result, 3, "model.safetensors", "fetch it again")
    assert not world.out.exists()
    assert not world.out.with_name("out.partial").exists()


def _cut_after_planning(world: World, file: Path) -> None:
    from mergekit_lite.export import merge

    real = merge.check_target

    def cut(*args: Any, **more: Any) -> None:
        real(*args, **more)
        with file.open("r+b") as stream:
            stream.truncate(file.stat().st_size // 2)

    world.patch.setattr(merge, "check_target", cut)
