"""What is on disk: the folder, its catalog and its vector files."""
