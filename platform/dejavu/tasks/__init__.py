"""dejavu.tasks."""
