"""The networks, in torch: towers, heads, and the model that joins them."""
