from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergekit_lite.checkpoint import Header, Reader, TensorInfo, header_text, read_header_bytes
from mergekit_lite.errors import RecipeError, SourceError
from mergekit_lite.sources import Model, Source, resolve
from mergekit_lite.sources.resolve import registered, source_for
from tests.checkpoints import tiny_llama


class MemoryReader:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def read_into(self, buffer: Any, offset: int) -> None:
        view = memoryview(buffer).cast("B")
        view[:] = self.content[offset : offset + len(view)]

    def close(self) -> None:
        self.content = b""


class MemorySource:
    """Models that exist in memory only: `memory:N` is one tensor of N ones."""

    name = "memory"

    def accepts(self, reference: str) -> bool:
        return reference.startswith("memory:")

    def resolve(self, reference: str, relative_to: Path) -> Model:
        count = int(reference.removeprefix("memory:"))
        text, _, nbytes = header_text([("x", "F32", (count,))], {})
        head = len(text).to_bytes(8, "little") + text.encode()
        content = head + np.ones(count, dtype=np.float32).tobytes()
        tensors, metadata = read_header_bytes(content, "m", nbytes)
        header = Header(tensors, {"m": nbytes}, metadata)
        root = Path(f"/{reference}")
        return Model(
            reference, root, "checkpoint", "7", header, None, (), None,
            open=lambda file: MemoryReader(content),
        )  # fmt: skip


class Entry:
    """An entry point, as `importlib.metadata` gives it."""

    def __init__(self, name: str, load: Callable[[], object]) -> None:
        self.name, self.value, self.load = name, f"package:{name}", load


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Register entry points for the length of a test."""
    # Not by `import ... as`: in its package, the function of that name hides the module.
    module = importlib.import_module("mergekit_lite.sources.resolve")

    def entries(*found: Entry) -> None:
        def by_group(*, group: str) -> list[Entry]:
            return [*found] if group == "mergekit_lite.sources" else []

        monkeypatch.setattr(module, "entry_points", by_group)
        registered.cache_clear()

    yield entries
    registered.cache_clear()


@pytest.mark.parametrize("offered", [MemorySource, MemorySource()])
def test_a_registered_source_is_asked_first(
    tmp_path: Path, install: Callable[..., None], offered: object
) -> None:
    install(Entry("memory", lambda: offered))
    model = resolve("memory:3", relative_to=tmp_path)
    info: TensorInfo = model.header.tensors["x"]
    reader = model.open(info.file)
    assert isinstance(reader, Reader)
    assert not hasattr(reader, "fileno")
    values = np.zeros(3, dtype=np.float32)
    reader.read_into(values, info.start)
    assert values.tolist() == [1, 1, 1]
    assert resolve(str(tiny_llama(tmp_path)), relative_to=tmp_path).root == tmp_path


def test_a_registered_source_that_cannot_be_loaded_is_named(
    tmp_path: Path, install: Callable[..., None]
) -> None:
    def load() -> object:
        raise ImportError("no module named `lost`")

    install(Entry("broken", load))
    with pytest.raises(SourceError) as caught:
        resolve("anything", relative_to=tmp_path)
    assert "`broken` (package:broken) cannot be loaded: no module named `lost`" in str(caught.value)


def test_built_in_sources_keep_the_contract() -> None:
    expected = {"x.safetensors": "file", "folder": "folder", "zoo:smol": "zoo"}
    for reference, name in expected.items():
        source = source_for(reference)
        assert isinstance(source, Source)
        assert source.name == name
        assert source.accepts(reference)


def test_the_zoo_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="zoo"):
        resolve("zoo:lion", relative_to=tmp_path)


def test_resolving_imports_neither_torch_nor_numpy(base_folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mergekit_lite.sources import resolve; "
        "resolve(sys.argv[1], relative_to=Path()); "
        "print(sorted({'torch', 'numpy', 'safetensors', 'transformers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(base_folder)]
    assert subprocess.check_output(command, text=True).strip() == "[]"
