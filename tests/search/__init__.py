"""Tests of the search for parameters."""
