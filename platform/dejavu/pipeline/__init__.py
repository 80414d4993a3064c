"""The main job's stages, one driver each: what a stage takes from a run, and what the run says of it."""
