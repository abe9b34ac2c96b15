"""hivlp and other embedded products, as their users hold them: vectors with payloads, filters, additions, a folder."""
