"""Quantised checkpoints: what their codes stand for, and (`tiles`) the numbers themselves."""

from mergekit_lite.checkpoint.coded.recognise import Reading, as_plain

__all__ = ["Reading", "as_plain"]
