"""Evaluation of captions: greedy generation, text metrics, gallery page."""
