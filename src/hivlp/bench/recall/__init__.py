"""Recall of models on every data set at hand, beside published rows."""
