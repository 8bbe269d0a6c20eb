"""SVG files → a stream of packed token rows. Knows no model and no trainer."""
