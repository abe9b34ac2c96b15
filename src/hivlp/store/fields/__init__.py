"""Declared fields: typed columns of the metadata that answer conditions without SQLite."""
