"""The methods; importing a module registers it."""
