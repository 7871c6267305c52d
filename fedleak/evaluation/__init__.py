"""Grading: how close a reconstruction came to the truth, beside what a guess would have reached."""
