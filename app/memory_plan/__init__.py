"""Predict the memory of one optimizer step without weights or a GPU."""
