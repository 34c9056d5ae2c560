"""Quantizers in plain torch: FP8 e4m3 for attention, at every granularity."""
