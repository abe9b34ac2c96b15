"""``hivlp bench products``: embedded vector databases and libraries in a user's hands, payloads included, beside hivlp."""
