"""Tuning: the approximate index is built, measured on the index's own data, and kept in step with it."""
