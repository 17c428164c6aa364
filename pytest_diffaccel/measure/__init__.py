"""Measuring: clocks, randomised blocks, statistics of speed-ups, image quality and evaluation prompts."""
