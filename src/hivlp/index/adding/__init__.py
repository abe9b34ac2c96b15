"""Adding: pictures and vectors into an index, and what becomes of items whose files are gone."""
