"""Ways to run the same rules: the masked oracle, the compacted one for CPUs, those of given rows for GPUs."""
