"""One experiment: check it, run it, attack it again, hold a claim against it."""
