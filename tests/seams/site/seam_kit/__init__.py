"""What another package adds, as it would be installed: three ops, a source and an executor."""
