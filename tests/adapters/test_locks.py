"""Every adapter that a verb writes can be rechecked, like the output of a merge."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mergekit_lite.api import corda_split, extract_lora, fold_adapters, rose_mask
from mergekit_lite.cli.main import main
from mergekit_lite.errors import DataError
from mergekit_lite.export.verify import verify
from tests.checkpoints import perturbed, tiny_llama
from tests.engine.test_adapters import adapt

Q = "model.layers.0.self_attn.q_proj"
LOCK = "recipe.lock.yaml"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_llama(tmp_path / "base", dtype="float32", tied=False)
    perturbed(tmp_path / "base", tmp_path / "tuned", seed=3, scale=0.1)
    adapt(tmp_path / "base", tmp_path / "lora", r=4, target_modules=["q_proj"])
    save_file({f"{Q}.weight": torch.eye(32)}, tmp_path / "grams.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


Make = Callable[[Path], object]
MADE: dict[str, tuple[Make, set[str], dict[str, object]]] = {
    "extract-lora": (
        lambda out: extract_lora("tuned", "base", out, rank=4),
        {"base", "tuned"},
        {"rank": 4, "energy": None, "exact": False, "dtype": "float32"},
    ),
    "adapter rose-mask": (lambda out: rose_mask("lora", out, keep=0.5), {"adapter"}, {"keep": 0.5}),
    "adapter corda-split": (
        lambda out: corda_split("base", "grams.safetensors", out, rank=3),
        {"model"},
        {"rank": 3, "method": "ipm"},
    ),
    "adapter fold": (lambda out: fold_adapters("base", ["lora"], out), {"base", "fold1"}, {}),
}


@pytest.mark.parametrize("verb", MADE)
def test_its_lock_says_what_it_is_and_verify_rechecks_it(root: Path, verb: str) -> None:
    make, inputs, parameters = MADE[verb]
    out = root / "out"
    make(out)
    lock = yaml.safe_load((out / LOCK).read_text())
    assert lock["tool"].startswith("mergekit-lite ")
    assert lock["inputs"].keys() == inputs
    if verb != "adapter fold":  # a recipe, which the lock holds
        assert lock["made_by"] == {"verb": verb, "parameters": parameters}
    for source in lock["inputs"].values():
        for file, facts in source["files"].items():
            data = (root / source["root"] / file).read_bytes()
            assert facts == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert verify(out, inputs=True, relative_to=root) == []
    assert str(root) not in (out / LOCK).read_text()
    weights = next(out.glob("*.safetensors"))
    assert {file.name for file in out.iterdir()} - lock["outputs"].keys() <= {
        LOCK, "README.md", "merge_report.json",
    }  # fmt: skip
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = CliRunner().invoke(main, ["verify", str(out)])
    assert done.exit_code == 3
    assert weights.name in done.stderr


def test_changed_inputs_are_found(root: Path) -> None:
    corda_split("base", "grams.safetensors", root / "out", rank=3)
    save_file({f"{Q}.weight": 2 * torch.eye(32)}, root / "grams.safetensors")
    stored = load_file(root / "base" / "model.safetensors")
    stored[f"{Q}.weight"][0, 0] += 1
    save_file(stored, root / "base" / "model.safetensors", metadata={"format": "pt"})
    assert verify(root / "out") == []
    found = verify(root / "out", inputs=True, relative_to=root)
    assert [problem.where for problem in found] == [
        "input model: model.safetensors",
        "grams.safetensors",
    ]


def test_a_strange_config_of_an_adapter_is_told_by_verify(root: Path) -> None:
    rose_mask("lora", root / "out")
    config = root / "out" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 4', '"r": 8'))
    assert [problem.where for problem in verify(root / "out")] == ["adapter_config.json"]


def test_nothing_is_left_where_the_lock_cannot_be_written(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise DataError("gone")

    monkeypatch.setattr("mergekit_lite.adapters.lock.input_digests", gone)
    before = {path.name for path in root.iterdir()}
    with pytest.raises(DataError, match="gone"):
        rose_mask("lora", root / "out")
    assert {path.name for path in root.iterdir()} == before


def test_two_runs_have_the_same_lock(root: Path) -> None:
    for name in ("one", "two"):
        extract_lora("tuned", "base", root / name, rank=2, threads=1 + (name == "two"))
    assert (root / "one" / LOCK).read_bytes() == (root / "two" / LOCK).read_bytes()
