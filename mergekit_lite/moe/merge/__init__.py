"""Merges experts of a routed model with each other: a group of a layer becomes one expert."""
