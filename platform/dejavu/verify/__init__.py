"""Holding the end tasks against published numbers."""
