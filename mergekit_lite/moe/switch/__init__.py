"""Switches experts of a routed model on or off by the bias that routers have in their choice."""
