"""The service: search, items, jobs and embeddings over HTTP, the page that shows them, and the client."""
