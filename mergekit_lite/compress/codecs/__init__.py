"""The codecs; importing a module registers it."""
