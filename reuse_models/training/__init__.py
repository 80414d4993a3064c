"""Fitting an add-on to a frozen tower."""
