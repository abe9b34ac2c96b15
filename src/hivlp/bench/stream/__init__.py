"""Training from a stream of shards, measured as a user runs it."""
