"""The ways in which patches store a difference; importing a module registers it."""
