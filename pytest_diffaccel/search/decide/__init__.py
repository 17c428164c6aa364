"""The third step of a search: what may still win, and what tells it from others."""
