"""Sampling with several attentions and the same seeds, and what the videos come to beside the dense ones."""
