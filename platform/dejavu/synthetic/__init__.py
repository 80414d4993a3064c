"""The drawn world of the demo."""
