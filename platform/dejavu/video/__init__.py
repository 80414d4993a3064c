"""dejavu.video."""
