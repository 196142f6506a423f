"""Quantised checkpoints: what codes stand for, and (`grid`, `numbers`) the parts they need."""

from mergekit_lite.checkpoint.coded.recognise import Reading, as_plain

__all__ = ["Reading", "as_plain"]
