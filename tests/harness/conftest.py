"""Tests of the harness are collected where they are asked for alone."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out unless `-m harness` is given: few environments have lm-eval."""
    return None if config.getoption("markexpr") == "harness" else True
