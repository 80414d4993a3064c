"""Where results lie, how they are named, and that none is half written."""
