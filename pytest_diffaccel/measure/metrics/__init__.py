"""Metrics of pictures, one file each: what :class:`.base.Metric` asks of them, and the registry that knows them."""
