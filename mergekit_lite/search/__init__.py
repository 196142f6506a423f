"""Chooses parameters of a recipe by how good the result is on validation data."""
