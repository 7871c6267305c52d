"""The commands, and what they show while they work."""
