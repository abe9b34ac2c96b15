"""Streams: pairs read in order from shards, in memory that does not depend on how many there are."""
