"""Turn SVG files into a stream of packed token sequences."""
