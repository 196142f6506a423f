"""mergekit 0.1.5, run once a session on every recipe here, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.checkpoints import perturbed, read_weights, tiny_llama

RECIPES = Path(__file__).parent / "recipes"
DRIVER = Path(__file__).with_name("driver.py")
PYTHON = "MERGEKIT_PEER_PYTHON"

Weights = dict[str, torch.Tensor]


def recipes(folder: str = "") -> list[str]:
    """Return the names of the recipes of one kind."""
    return sorted(path.stem for path in (RECIPES / folder).glob("*.yml"))


def make_models(root: Path, dtype: str) -> Path:
    """Make a base, three experts of it, and a model that has nothing to do with them."""
    base = tiny_llama(root / "base", layers=4, dtype=dtype)
    for seed, name in enumerate(("math", "code", "chat"), start=1):
        perturbed(base, root / name, seed=seed, scale=0.02)
    tiny_llama(root / "far", layers=4, dtype=dtype, seed=9)
    return root


@dataclass(frozen=True)
class Job:
    """One merge that mergekit is asked for.

    Attributes:
        name: of the job.
        text: the recipe.
        cwd: the folder with its models.
        kind: `merge`, `files` for `mergekit-pytorch` or `several` for `mergekit-multi`.
    """

    name: str
    text: str
    cwd: Path
    kind: str = "merge"


class Peer:
    """mergekit, and what it made of the jobs it was given."""

    def __init__(self, python: str, folder: Path) -> None:
        self.python = python
        self.folder = folder
        self.errors: dict[str, str] = {}

    def run(self, jobs: list[Job]) -> None:
        """Do all jobs in one process."""
        asked, answered = self.folder / "jobs.json", self.folder / "answers.json"
        asked.write_text(
            json.dumps(
                [
                    {
                        "name": job.name,
                        "text": job.text,
                        "cwd": str(job.cwd),
                        "kind": job.kind,
                        "out": str(self.out(job.name)),
                    }
                    for job in jobs
                ]
            )
        )
        done = subprocess.run(
            [self.python, str(DRIVER), str(asked), str(answered)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "TQDM_DISABLE": "1"},
        )
        assert answered.exists(), done.stderr
        self.errors |= json.loads(answered.read_text())

    def out(self, name: str) -> Path:
        return self.folder / "out" / name

    def weights(self, name: str) -> Weights:
        """Return what a job wrote."""
        assert self.errors[name] == "", self.errors[name]
        return read_weights(self.out(name))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of the models by dtype."""
    root = tmp_path_factory.mktemp("peer")
    return {dtype: make_models(root / dtype, dtype) for dtype in ("float32", "bfloat16")}


@pytest.fixture(scope="session")
def peer_python() -> str:
    """Return the Python of an environment that has mergekit."""
    python = os.environ.get(PYTHON)
    assert python, f"set {PYTHON} to the Python of an environment with mergekit 0.1.5"
    return python


@pytest.fixture(scope="session")
def peer(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, peer_python: str
) -> Peer:
    """Run mergekit on every recipe: in fp32, in bf16, and in fp64 on what bf16 starts from."""
    found = Peer(peer_python, tmp_path_factory.mktemp("mergekit"))
    jobs = []
    for name in recipes():
        text = (RECIPES / f"{name}.yml").read_text()
        for label, dtype, stored in (
            ("float32", "float32", "float32"),
            ("bfloat16", "bfloat16", "bfloat16"),
            ("exact", "float64", "bfloat16"),
        ):
            jobs.append(Job(f"{name}.{label}", f"{text}dtype: {dtype}\n", models[stored]))
    found.run(jobs)
    return found


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Weights]:
    """Run a recipe with mergekit-lite, from the folder of its models."""

    def run(text: str, cwd: Path, *changes: str) -> Weights:
        from mergekit_lite import api

        monkeypatch.chdir(cwd)
        (tmp_path / "merge.yml").write_text(text)
        out = tmp_path / "out"
        api.run(api.load(tmp_path / "merge.yml", changes), out, overwrite=True)
        return read_weights(out)

    return run
