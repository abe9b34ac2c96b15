"""What ``hivlp-mini`` and the recipes for a CPU need and nothing else does; found by entry points, as a plug-in is."""
