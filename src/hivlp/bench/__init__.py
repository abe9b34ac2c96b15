"""Measurements, each one command: `hivlp bench NAME`."""
