"""Holding the methods against published numbers, fast paths and counted operators."""
