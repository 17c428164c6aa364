"""Where a pipe comes from: model sources, the hub, weight files, loading, schedulers, embedded weights.

Importing this package, :mod:`.registry`, :mod:`.weights` or :mod:`.hub` imports no torch.
"""
