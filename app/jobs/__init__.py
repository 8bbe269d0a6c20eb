"""One file a command: the only place that sees the whole config and Ray together."""
