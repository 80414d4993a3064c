"""DiffRate: merging and pruning by a schedule, and the search for one."""
