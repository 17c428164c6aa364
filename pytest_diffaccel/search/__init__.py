"""Searching: measuring candidates, pooling what they share, choosing winners and measuring those again."""
