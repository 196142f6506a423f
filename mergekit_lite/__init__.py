"""Merge and compress model checkpoints from a recipe, as a stream."""

__version__ = "0.1.0"
