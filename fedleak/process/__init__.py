"""Processes, threads and locks: worker pools, Ray, and what is left behind by a thread that cannot be stopped."""
