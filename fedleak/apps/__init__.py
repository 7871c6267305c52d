"""fedleak inside somebody else's Flower app, and as one."""
