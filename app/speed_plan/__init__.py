"""Measure a device, and predict the seconds of one optimizer step from that."""
