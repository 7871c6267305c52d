"""Membership tests: whether given candidate examples took part in an update."""
