"""dejavu."""
