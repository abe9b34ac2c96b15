"""How a collection is searched: the plan, its stages, and their results."""
