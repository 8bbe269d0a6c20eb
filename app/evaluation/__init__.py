"""What a trained captioner is worth: held-out loss, text metrics, gallery."""
