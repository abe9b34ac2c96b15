"""Inputs of training: augmentation, the decoded training set, cached features and vectors."""
