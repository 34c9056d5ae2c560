"""The attention engine: grids, schedules, plans, quantization and kernels. Knows no host and no trainer."""
