"""From a text to the moments that it means."""
