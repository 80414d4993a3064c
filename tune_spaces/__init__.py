"""What a sweep tries of each method, by the field names of its config."""
