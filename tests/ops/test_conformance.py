"""Every registered op holds to the shipped suite."""

from __future__ import annotations

import pytest

from mergekit_lite.ops import registry
from mergekit_lite.testing import Case, pytest_cases


@pytest.mark.parametrize("case", pytest_cases(*registry().values()))
def test_conformance(case: Case) -> None:
    case()
