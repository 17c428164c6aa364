"""Where a pipe comes from: registry of model sources, weight files, loading, schedulers, embedded weights.

Importing this package, :mod:`.registry`, :mod:`.weights` or :mod:`.hub` imports no torch.
"""
