"""The model: loading in NF4 with LoRA, attention, loss. Knows torch; never Ray, never MLflow."""

import logging

# Before any submodule imports bitsandbytes, which reports every optional kernel that is not there.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
