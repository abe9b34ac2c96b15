"""``hivlp bench products``: embedded vector databases in a user's hands, payloads included, beside hivlp."""
