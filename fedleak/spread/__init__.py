"""Work spread out: over processes of this machine, or over a Ray cluster."""
