"""Routed models: put together from dense ones, their gates, and who can run them."""
