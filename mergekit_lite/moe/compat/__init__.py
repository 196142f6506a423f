"""What each loader computes from a routed model's files, told from config and headers."""

from __future__ import annotations

from mergekit_lite.moe.compat.check import (
    Finding,
    Report,
    check_model,
    config_warnings,
    norm_findings,
)

__all__ = ["Finding", "Report", "check_model", "config_warnings", "norm_findings"]
