"""An attack at work: within its limits, and with what it breaks turned into results."""
