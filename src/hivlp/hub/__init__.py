"""Models by name: a curated table, and fetching from the Hugging Face hub, pinned and checked."""
