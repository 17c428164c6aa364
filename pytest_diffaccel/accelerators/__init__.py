"""Acceleration methods, their composition and the public :func:`~.acceleration.accelerate`.

All patching of other libraries happens in this package and nowhere else. Importing it imports no torch.
"""
