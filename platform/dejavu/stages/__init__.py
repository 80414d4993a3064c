"""dejavu.stages."""
