"""Whether a model is any good: scores, comparisons, bounds, and faults that can be seen."""
