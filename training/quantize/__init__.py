"""Post-training quantization of a Wan to few-bit floating point (MSFP): calibration, search, file, report."""
