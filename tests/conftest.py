"""Fixtures shared by all rooms: compiled kernels, and tiny checkpoints made once a session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more of a busy machine than of the code.
settings.register_profile("any", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# In CI the same examples every time: a new one that fails belongs to whoever looks for it.
settings.register_profile("ci", settings.get_profile("any"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "any")

ROOMS_WITH_KERNELS = {"engine", "export", "kernels", "quality", "seams", "zoo"}


@pytest.fixture(scope="session", autouse=True)
def _general_kernels(request: pytest.FixtureRequest) -> None:
    """Compile the kernels for any kind of row, once for all sessions on this machine.

    Tiny rows then use them, and no test waits for loops of their own.
    """
    folder = Path(__file__).parent
    rooms = {item.path.relative_to(folder).parts[0] for item in request.session.items}
    if rooms & ROOMS_WITH_KERNELS:
        from mergekit_lite.kernels import lora, order, sums, tile, warm
        from mergekit_lite.kernels._jit import KERNELS

        general = {module.__name__.rpartition(".")[2] for module in (lora, order, sums, tile)}
        warm.compile_kernels([kernel for kernel in KERNELS if kernel.maker[0] in general])


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
