"""From a recipe and the headers of its models to a table with one row per output tensor."""
