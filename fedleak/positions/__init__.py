"""Where a server stands: honest, or honest-but-curious; what it records, and how it has that attacked and graded."""
