"""Where a server stands: honest, or honest-but-curious; what it records, and how it has that attacked and graded.

A new position is one file with a class that has the two methods of :class:`~fedleak.positions.base.Position`.
"""
