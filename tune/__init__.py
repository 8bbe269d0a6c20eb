"""Searches over a config. The caller passes a callable that runs one trial."""
