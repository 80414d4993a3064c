"""dejavu.datasets."""
