"""One file per command. Only this package uses the root config together with Ray."""
