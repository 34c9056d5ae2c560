"""Low-bit floating point for linear layers, signed and unsigned with a zero point (MSFP): formats, files, kernels."""
