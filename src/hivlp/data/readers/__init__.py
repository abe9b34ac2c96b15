"""Readers of pairs: one file a format, each skipping and naming what is damaged."""
