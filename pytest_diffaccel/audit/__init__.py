"""Somebody's preset: what it asks for, what it gives here, and what golden has that is better."""
