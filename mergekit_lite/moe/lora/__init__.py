"""Adapters side by side in one model, with a gate for each module that they change."""
