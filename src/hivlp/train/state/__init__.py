"""The state of a run on disk: checkpoints, its origin, cached tensors."""
