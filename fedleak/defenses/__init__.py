"""Defenses that run on the clients: one file each, found by name."""
