"""Headless joint fine-tuning of Wan2.1 with FPSAttention: ``python -m training.run``."""
