"""What a sweep tries: one file per method, keyed by the field names of that method's config."""
