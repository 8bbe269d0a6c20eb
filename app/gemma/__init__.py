"""The model: loading in NF4 with LoRA, loss. Knows torch; never Ray, never MLflow."""
