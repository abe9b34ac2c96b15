"""Fine-tuning of the compared systems for retrieval, each by its own published procedure."""
