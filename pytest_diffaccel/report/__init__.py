"""Showing what a search found: live line, logs, tables and pictures."""
