"""Fixtures shared by all rooms: tiny checkpoints, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bf16 Llama in one file. Read only: a test that edits files makes its own."""
    # Imported here because torch takes seconds, and most rooms are tested without it.
    from tests.checkpoints import tiny_llama

    return tiny_llama(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def expert_folders(base_folder: Path) -> dict[str, Path]:
    """Three experts of `base_folder`, by name. Read only."""
    from tests.checkpoints import perturbed

    return {
        name: perturbed(base_folder, base_folder.parent / name, seed=seed, scale=0.02)
        for seed, name in enumerate(("math", "code", "chat"), start=1)
    }
