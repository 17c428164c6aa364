"""``diffaccel``: what people do who do not start from pytest, a file per command."""
