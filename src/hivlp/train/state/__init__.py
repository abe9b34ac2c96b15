"""What a run keeps on disk: checkpoints, what it was begun with, and results that are used again."""
