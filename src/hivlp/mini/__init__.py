"""Data sets, towers, heads and initial weights of ``hivlp-mini`` and the CPU recipes, plugged in by entry points."""
