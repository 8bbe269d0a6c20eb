"""Read every input format as records: one (id, svg, caption, source) each. Knows no shards and no tokens."""
