"""Gemma 2: loading in NF4 with LoRA, attention, loss."""

import logging

# bitsandbytes logs each missing optional kernel at import, hence before any submodule imports it
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
