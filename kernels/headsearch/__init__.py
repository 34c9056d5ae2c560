"""The offline search of a pattern per head (Sparse-vDiT, arXiv 2506.03065): evidence, costs, errors, choice."""
