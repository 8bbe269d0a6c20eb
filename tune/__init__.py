"""Searches over a config. Imports no model: the caller passes a callable that runs one trial."""
