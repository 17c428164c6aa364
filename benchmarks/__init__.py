"""How good is the harness itself? Each module prints one table, and the same as JSON with ``--json``."""
