"""Routers of merged routed models that are fitted to those of the models they come from."""
