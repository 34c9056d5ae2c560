"""Quantizers: FP8 e4m3 for attention; the plain-torch reference stands beside every kernel."""
