"""Routed models to which experts are added."""
