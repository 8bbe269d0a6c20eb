"""SVGScribe: teach Gemma 2 to describe SVG drawings."""
