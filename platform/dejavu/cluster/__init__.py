"""Ray: connecting, mapping over records, machines that come and go."""
