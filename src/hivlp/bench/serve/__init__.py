"""``hivlp bench serve``: ``hivlp serve`` under load, beside the services that people build of other parts."""
