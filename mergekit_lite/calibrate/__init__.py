"""The one pass of texts through a model that yields statistics, one layer in memory at a time."""
