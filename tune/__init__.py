"""Searches over a config. Knows no model: it is handed a callable that runs one trial."""
