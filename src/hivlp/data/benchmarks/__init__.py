"""Published benchmarks of image-text retrieval, read from the folders that their authors hand out."""
