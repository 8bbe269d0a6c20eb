"""SVGScribe: teach Gemma 2 to describe SVG drawings."""

from app.lazy_compile import compile_lazily

compile_lazily()  # before any module imports bitsandbytes, which transformers and PEFT do
