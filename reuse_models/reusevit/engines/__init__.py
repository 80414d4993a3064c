"""Ways to run the same policy: the masked oracle, the compacted one for CPUs, those of given rows for GPUs."""
