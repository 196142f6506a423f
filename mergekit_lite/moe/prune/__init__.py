"""Leaves experts of a routed model out: the others stay as they are stored, bit for bit."""
