"""Gradient matching: the optimisation loop, and many starts in one tensor program."""
