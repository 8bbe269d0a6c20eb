"""Read every input format as records of (id, svg, caption, source, concept).

`read.py` chooses the format; each format has a module of its own with one `read_…` function.
"""
