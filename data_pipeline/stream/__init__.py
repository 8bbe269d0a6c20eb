"""Turn shards into tokens, packed sequences and a Ray Data stream with an exact position."""
