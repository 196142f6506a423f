"""Cutting the feed-forward layers of a dense model into experts, one way of splitting a file."""
