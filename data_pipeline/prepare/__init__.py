"""Turn records into clean, deduplicated, split and shuffled Parquet shards."""
