"""Routed experts that one model stores in another layout than the base."""
