"""Choosing settings on validation clips with Ray Tune."""
