"""The generated ops reference: complete, current, and with examples that load."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from mergekit_lite.ops import registry
from mergekit_lite.recipe import load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    path = ROOT / "tools" / "generate_ops_reference.py"
    spec = importlib.util.spec_from_file_location("generate_ops_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_op_has_a_page(generator: ModuleType) -> None:
    own = {s.name for s in registry().values() if s.function.__module__.startswith("mergekit_")}
    assert generator.pages().keys() == {"index.md", *(f"{name}.md" for name in own)}


def test_every_example_is_a_recipe(generator: ModuleType) -> None:
    for name, page in generator.pages().items():
        if name == "index.md":
            continue
        example = page.split("## Example\n\n```yaml\n")[1].split("```")[0]
        recipe = load(yaml.safe_load(example))
        assert recipe.steps, name


def test_check_tells_stale_pages(
    generator: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generator.main(["--check", "--out", str(tmp_path)]) == 1
    assert generator.main(["--out", str(tmp_path)]) == 0
    assert generator.main(["--check", "--out", str(tmp_path)]) == 0
    (tmp_path / "ties.md").write_text("old")
    (tmp_path / "left_over.md").write_text("")
    capsys.readouterr()
    assert generator.main(["--check", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("stale: ") == 2
    assert generator.main(["--out", str(tmp_path)]) == 0
    assert not (tmp_path / "left_over.md").exists()
