"""Messages as Flower carries them: replies, cohorts, strategies that wrap one another."""
