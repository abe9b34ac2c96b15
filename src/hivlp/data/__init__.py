"""Pairs of pictures and captions from the formats people keep them in; pictures decoded safely."""
