"""Evaluation of a trained captioner: held-out loss, text metrics, gallery."""
