"""Coarse levels learned from a finished fine one."""
