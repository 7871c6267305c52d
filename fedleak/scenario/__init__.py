"""The schema of a scenario file, its tables and validation."""
