"""Vectors that another program made: ``.npy``, parquet, clip-retrieval."""
