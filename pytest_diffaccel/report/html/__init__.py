"""A search as one HTML file that opens from disk: what was gained, what it cost, and whether to trust it."""
