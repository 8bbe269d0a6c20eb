"""Turn SVG files into a stream of packed token sequences. Imports no model and no trainer."""
