"""The benchmark: ours and every peer that is installed, cell by cell, each cell in a process of its own."""
